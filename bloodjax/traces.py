"""How long each operation of a compiled step took, from a trace of `jax.profiler`.

The runtime marks when an operation begins and ends, by the instruction's name: on CPU on each
thread that starts one, on GPU on each stream, on TPU on a line of its own. Operations overlap: two
threads run two, and an operation hands parts of itself to threads on which nothing is marked. So
time is shared out by the clock: each moment goes in equal parts to the operations under way then.
The shares and the idle rest add up to the wall time.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence

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
        # On CPU an operation's end is an event of its own, that refers to its begin.
        done = max(end, ends.get(producer, end) if producer is not None else end)
        yield Span(operation, plane.name, line, start, end, done)


def _is_work(line: str) -> bool:
    """Whether a device's line holds operations: GPU streams, and a TPU core's own line."""
    return line.startswith("Stream") or line == "XLA Ops"


def _instruction(event: str) -> str:
    """A TPU's event is named by the instruction's text; a GPU's by its kernel, which says less."""
    return event[1:].partition(" = ")[0] if event.startswith("%") else UNNAMED


def by_the_clock(spans: Sequence[Span], containers: Collection[str] = ()) -> dict[str, float]:
    """Nanoseconds of wall time for each operation: the mean over the devices.

    Args:
      spans: of any number of devices.
      containers: operations that only run others; a moment is theirs where nothing else runs.
    """
    devices = {span.device for span in spans}
    total = collections.Counter()
    for device in devices:
        for operation, time in _share(
            [span for span in spans if span.device == device], containers
        ).items():
            total[operation] += time / len(devices)
    return dict(total)


def _share(spans: Sequence[Span], containers: Collection[str]) -> collections.Counter:
    changes = sorted(
        [(span.start, 1, span.operation) for span in spans]
        + [(span.done, -1, span.operation) for span in spans]
    )
    shares, active, before = collections.Counter(), collections.Counter(), 0.0
    for now, change, operation in changes:
        if active and now > before:
            running = {name: n for name, n in active.items() if name not in containers} or active
            part = (now - before) / sum(running.values())
            for name, n in running.items():
                shares[name] += n * part
        active[operation] += change
        if not active[operation]:
            del active[operation]
        before = now
    return shares


def on_threads(spans: Sequence[Span]) -> dict[str, float]:
    """Nanoseconds that each operation held threads or streams, all together, over all devices.

    What runs within another operation on the same thread counts once, as its own.
    """
    total = collections.Counter()
    lines = collections.defaultdict(list)
    for span in spans:
        lines[span.device, span.line].append(span)
    for line in lines.values():
        around: list[Span] = []
        for span in sorted(line, key=lambda span: (span.start, -span.end)):
            while around and around[-1].end <= span.start:
                around.pop()
            if around:
                total[around[-1].operation] -= min(span.end, around[-1].end) - span.start
            total[span.operation] += span.end - span.start
            around.append(span)
    return dict(total)


def summed(times: dict[str, float], key: Callable[[str], str]) -> dict[str, float]:
    """The times of all operations that `key` gives one name."""
    total = collections.Counter()
    for operation, time in times.items():
        total[key(operation)] += time
    return dict(total)
