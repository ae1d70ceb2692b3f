"""How long each operation of a compiled step took, from a trace of `jax.profiler`.

The runtime marks when an operation begins and ends, by the instruction's name: on CPU on each
thread that starts one, on GPU on each stream, on TPU on a line of its own. On CPU an operation also
hands parts of itself to further threads, on which nothing is marked, and is done when they are. So
time is shared out by the clock: each moment goes in equal parts to the threads at work, and those
without a mark count towards what is not done yet. The shares and the idle rest add up to the wall
time.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax

UNNAMED = "(not named)"
"""Stands for what ran on a device without the name of an instruction."""


@dataclasses.dataclass(frozen=True)
class Span:
    """An operation under way.

    Attributes:
      operation: name of the instruction, or `UNNAMED`.
      device: a device, or the host with all its CPU devices.
      line: the thread or stream that began it.
      start: in nanoseconds.
      end: when that thread or stream was through with it.
      done: when all of it was; an operation may go on on other threads.
    """

    operation: str
    device: str
    line: str
    start: float
    end: float
    done: float


def read(folder: pathlib.Path, program: str) -> list[Span]:
    """The operations of one program in the newest trace under `folder`.

    Args:
      folder: what `jax.profiler.start_trace` was given.
      program: the compiled module's name, such as "jit_train_steps".

    Returns:
      Its spans; none where the trace names no operations of that program.

    Raises:
      FileNotFoundError: there is no trace.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no trace (*.xplane.pb) under {folder}")
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    return [span for plane in data.planes for span in _spans(plane, program)]


def _spans(plane, program: str) -> Iterator[Span]:
    begun, ends = [], {}
    for line in plane.lines:
        on_device = plane.name.startswith("/device:") and _is_work(line.name)
        for event in line.events:
            stats = dict(event.stats)
            if event.name.startswith("end: "):
                ends[stats.get("_c")] = event.start_ns
                continue
            operation = stats.get("hlo_op") or (_instruction(event.name) if on_device else "")
            module = str(stats.get("hlo_module", program)).partition("(")[0]
            if operation and module == program:
                begun.append((operation, line.name, event.start_ns, event.end_ns, stats.get("_p")))
    for operation, line, start, end, producer in begun:
        # On CPU that an operation is done is an event of its own, which refers to its begin.
        done = end if producer is None else max(end, ends.get(producer, end))
        if end > start:
            yield Span(operation, plane.name, line, start, end, done)


def _is_work(line: str) -> bool:
    """Whether a device's line holds operations: GPU streams, and a TPU core's own line."""
    return line.startswith("Stream") or line == "XLA Ops"


def _instruction(event: str) -> str:
    """A TPU's event is named by the instruction's text; a GPU's by its kernel, which says less."""
    return event[1:].partition(" = ")[0] if event.startswith("%") else UNNAMED


@dataclasses.dataclass
class Times:
    """What operations took, in nanoseconds by their names.

    Attributes:
      wall: of wall time: each moment goes in equal parts to the threads or streams at work then.
      busy: of all their time together, so that two at once count twice.
    """

    wall: collections.Counter
    busy: collections.Counter

    def by(self, name: Callable[[str], str]) -> Times:
        """The sums over all operations that `name` gives one name."""
        sums = Times(collections.Counter(), collections.Counter())
        for mine, other in ((sums.wall, self.wall), (sums.busy, self.busy)):
            for operation, time in other.items():
                mine[name(operation)] += time
        return sums


def account(spans: Iterable[Span], threads: int, containers: Collection[str] = ()) -> Times:
    """What each operation took, the mean over the devices.

    Args:
      spans: of any number of devices.
      threads: how many can be at work on a device at once. Those that no span holds count towards
        the operations that wait for parts of themselves.
      containers: operations that only run others; a moment is theirs where nothing else runs.
    """
    devices = collections.defaultdict(list)
    for span in spans:
        devices[span.device].append(span)
    total = Times(collections.Counter(), collections.Counter())
    for held in devices.values():
        for length, weights in _moments(held, threads, frozenset(containers)):
            part = length / len(devices)
            every = sum(weights.values())
            for operation, weight in weights.items():
                total.wall[operation] += part * weight / every
                total.busy[operation] += part * weight
    return total


def _moments(
    spans: Sequence[Span], threads: int, containers: frozenset[str]
) -> Iterator[tuple[float, dict[str, float]]]:
    """Stretches of time in which nothing changes: how long, and how many threads work on what."""
    begins, ends, dones = 2, 1, 0  # at one time, what ends does so first
    changes = [(span.start, begins, i) for i, span in enumerate(spans)]
    changes += [(span.end, ends, i) for i, span in enumerate(spans)]
    changes += [(span.done, dones, i) for i, span in enumerate(spans) if span.done > span.end]
    held: dict[str, list[Span]] = collections.defaultdict(list)
    waiting: collections.Counter[str] = collections.Counter()
    before = 0.0
    for now, change, i in sorted(changes):
        if now > before and (weights := _at_work(held, waiting, threads, containers)):
            yield now - before, weights
        before, span = now, spans[i]
        if change == begins:
            held[span.line].append(span)
        elif change == ends:
            held[span.line].remove(span)
            if not held[span.line]:
                del held[span.line]
            if span.done > span.end:
                waiting[span.operation] += 1
        else:
            waiting[span.operation] -= 1
            if not waiting[span.operation]:
                del waiting[span.operation]


def _at_work(held, waiting, threads: int, containers: frozenset[str]) -> dict[str, float]:
    """Operation -> threads that work on it, given the spans that hold each and those not done."""
    innermost = [spans[-1].operation for spans in held.values()]
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
