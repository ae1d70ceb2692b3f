"""The time of each operation of a compiled step, from a `jax.profiler` trace.

The runtime records when an operation starts and ends, under the instruction's name: on CPU for the
thread that starts the operation, on GPU for each stream, on TPU on a separate line. On CPU an
operation may also use worker threads, which the trace does not show; it completes when they do.
We therefore divide wall time: each moment is split equally between the busy threads, and threads
that the trace does not show count as working on the operations that are not complete. The times of
all operations and the idle time add up to the wall time.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax

UNNAMED = "(not named)"
"""Name of device work for which the trace gives no instruction."""


@dataclasses.dataclass(frozen=True)
class Span:
    """One execution of an operation. Times are in nanoseconds.

    Attributes:
      operation: Name of the instruction, or `UNNAMED`.
      device: A device; or the host, with all its CPU devices.
      line: The thread or stream that started the operation.
      start: Start time.
      end: When that thread or stream finished with it.
      done: When the operation completed; other threads may work on it until after `end`.
    """

    operation: str
    device: str
    line: str
    start: float
    end: float
    done: float


def load(folder: pathlib.Path, program: str) -> list[Span]:
    """Loads the operations of one program from the newest trace under `folder`.

    Args:
      folder: The folder that `jax.profiler.start_trace` wrote to.
      program: Name of the compiled module, such as "jit_train_steps".

    Returns:
      The spans; empty if the trace names no operation of that program.

    Raises:
      FileNotFoundError: There is no trace.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no trace (*.xplane.pb) under {folder}")
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    return [span for plane in data.planes for span in _spans(plane, program)]


def _spans(plane, program: str) -> Iterator[Span]:
    started, ends = [], {}
    for line in plane.lines:
        on_device = plane.name.startswith("/device:") and _has_operations(line.name)
        for event in line.events:
            stats = dict(event.stats)
            if event.name.startswith("end: "):
                ends[stats.get("_c")] = event.start_ns
                continue
            operation = stats.get("hlo_op") or (_instruction(event.name) if on_device else "")
            module = str(stats.get("hlo_module", program)).partition("(")[0]
            if operation and module == program:
                started.append(
                    (operation, line.name, event.start_ns, event.end_ns, stats.get("_p"))
                )
    for operation, line, start, end, producer in started:
        # On CPU a separate event, which refers to the start event, marks the completion.
        done = end if producer is None else max(end, ends.get(producer, end))
        if end > start:
            yield Span(operation, plane.name, line, start, end, done)


def _has_operations(line: str) -> bool:
    """Whether a line of a device contains operations: GPU streams, and the TPU's "XLA Ops"."""
    return line.startswith("Stream") or line == "XLA Ops"


def _instruction(event: str) -> str:
    """The instruction of an event: TPU events have its text as their name, GPU events do not."""
    return event[1:].partition(" = ")[0] if event.startswith("%") else UNNAMED


@dataclasses.dataclass
class Times:
    """Nanoseconds by operation.

    Attributes:
      wall: Share of the wall time; each moment is split equally between busy threads or streams.
      busy: Time summed over threads or streams.
    """

    wall: collections.Counter
    busy: collections.Counter

    def by(self, name: Callable[[str], str]) -> Times:
        """Sums over the operations for which `name` returns the same name."""
        sums = Times(collections.Counter(), collections.Counter())
        for mine, other in ((sums.wall, self.wall), (sums.busy, self.busy)):
            for operation, time in other.items():
                mine[name(operation)] += time
        return sums


def account(spans: Iterable[Span], threads: int, containers: Collection[str] = ()) -> Times:
    """The time of each operation, averaged over the devices.

    Args:
      spans: Spans of any number of devices.
      threads: Number of threads that a device can use at once. Threads without a span count as
        working on the operations that are not complete.
      containers: Operations that only run others. They get the moments at which no other runs.
    """
    devices = collections.defaultdict(list)
    for span in spans:
        devices[span.device].append(span)
    total = Times(collections.Counter(), collections.Counter())
    for of_device in devices.values():
        for length, weights in _intervals(of_device, threads, frozenset(containers)):
            part = length / len(devices)
            every = sum(weights.values())
            for operation, weight in weights.items():
                total.wall[operation] += part * weight / every
                total.busy[operation] += part * weight
    return total


def _intervals(
    spans: Sequence[Span], threads: int, containers: frozenset[str]
) -> Iterator[tuple[float, dict[str, float]]]:
    """Intervals without a change: (duration, operation -> number of threads working on it)."""
    start, end, done = 2, 1, 0  # Sort order of simultaneous events: ends come before starts.
    changes = [(span.start, start, i) for i, span in enumerate(spans)]
    changes += [(span.end, end, i) for i, span in enumerate(spans)]
    changes += [(span.done, done, i) for i, span in enumerate(spans) if span.done > span.end]
    running: dict[str, list[Span]] = collections.defaultdict(list)
    waiting: collections.Counter[str] = collections.Counter()
    before = 0.0
    for now, change, i in sorted(changes):
        if now > before and (weights := _at_work(running, waiting, threads, containers)):
            yield now - before, weights
        before, span = now, spans[i]
        if change == start:
            running[span.line].append(span)
        elif change == end:
            running[span.line].remove(span)
            if not running[span.line]:
                del running[span.line]
            if span.done > span.end:
                waiting[span.operation] += 1
        else:
            waiting[span.operation] -= 1
            if not waiting[span.operation]:
                del waiting[span.operation]


def _at_work(running, waiting, threads: int, containers: frozenset[str]) -> dict[str, float]:
    """Operation -> number of threads working on it.

    Args:
      running: Thread or stream -> the nested spans that it runs.
      waiting: Operation -> number of executions that only hidden threads still work on.
      threads: See `account`.
      containers: See `account`.
    """
    innermost = [spans[-1].operation for spans in running.values()]
    weights = collections.Counter()
    for name in innermost:
        if name not in containers:
            weights[name] += 1.0
    free = threads - weights.total()
    parts = {name: n for name, n in waiting.items() if name not in containers}
    if parts and free > 0:
        every = sum(parts.values())
        for name, n in parts.items():
            weights[name] += free * n / every
    return weights or dict.fromkeys([*innermost, *waiting][:1], 1.0)
