"""A profile's tables: the time of a training step by group and by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bloodjax.profiling import hlo, trace

IDLE = "idle, host"
UNNAMED = "not named in the trace"
_MAX_OPERATIONS = 15
_UNKNOWN = hlo.Instruction("", "")


def tables(
    spans: Sequence[trace.Span],
    program: hlo.Program,
    layer_types: Mapping[str, str],
    steps: int,
    seconds: float,
    threads: int,
) -> dict[str, list[dict[str, Any]]]:
    """The time of some training steps by group and by operation.

    Args:
      spans: The operations that ran.
      program: The compiled step.
      layer_types: Path of a module -> its layer type; see `models.summary.layer_types`.
      steps: Number of steps.
      seconds: Wall time of all of them together.
      threads: See `trace.account`.

    Returns:
      "groups" and "operations", each a list sorted by descending time; empty without spans. In a
      row, `ms` is wall time per step (see `trace.Times`; the groups add up to a step), `share` the
      same as a share of a step, and `thread_ms` the time of all threads or streams per step.
    """
    if not spans:
        return {"groups": [], "operations": []}
    containers = {n for n, i in program.instructions.items() if i.opcode in hlo.CONTAINERS}
    times = trace.account(spans, threads, containers)

    def row(wall: float, busy: float) -> dict[str, float]:
        return {
            "ms": wall / 1e6 / steps,
            "share": wall / 1e9 / seconds,
            "thread_ms": busy / 1e6 / steps,
        }

    def rows(times: trace.Times, describe: Callable[[str], dict[str, str]]):
        return [
            {**describe(name), **row(wall, times.busy[name])}
            for name, wall in times.wall.most_common()
        ]

    def group(operation: str) -> str:
        if operation == trace.UNNAMED:
            return UNNAMED
        return hlo.group(program.instructions.get(operation, _UNKNOWN), layer_types)

    def operation(name: str) -> dict[str, str]:
        instruction = program.instructions.get(name, _UNKNOWN)
        return {
            "operation": name,
            "group": group(name),
            "shape": instruction.shape,
            "op_name": instruction.op_name,
            "source": instruction.source,
        }

    groups = rows(times.by(group), lambda name: {"group": name})
    groups.append({"group": IDLE, **row(1e9 * seconds - times.wall.total(), 0.0)})
    return {"groups": groups, "operations": rows(times, operation)[:_MAX_OPERATIONS]}


def as_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of `profile.json` as text for a terminal."""
    return "\n".join(_phase(name, entry) for name, entry in entries.items())


def _phase(name: str, entry: Mapping[str, Any]) -> str:
    lines = [f"{name}: {entry['device']}", *(f"  {line}" for line in facts(entry))]
    if entry["note"]:
        lines.append(f"  {entry['note']}")
    if entry["groups"]:
        lines += ["", f"  {'ms/step':>9} {'share':>7} {'threads':>9}  part"]
        lines += [f"  {_times(row)}  {row['group']}" for row in entry["groups"]]
        lines += ["", "  The longest operations:"]
    for row in entry["operations"]:
        lines.append(f"  {_times(row)}  {row['operation']}  {row['shape']}  {row['source']}")
        lines.append(f"{'':31}{row['op_name']}")
    return "\n".join(lines) + "\n"


def _times(row: Mapping[str, Any]) -> str:
    return f"{row['ms']:9.2f} {row['share']:7.1%} {row['thread_ms']:9.2f}"


def facts(entry: Mapping[str, Any]) -> list[str]:
    """A phase's measurements outside the tables, one sentence each."""
    sentences = [
        f"{entry['images_per_second']:,.1f} images/s: {entry['ms_per_step']:,.1f} ms per step "
        f"of {entry['batch_size']} images (mean of {entry['steps']}; tracing adds a little), "
        f"{entry['cpu_ms_per_step']:,.1f} ms of CPU time.",
    ]
    if entry["mfu"] is None:
        sentences.append(f"Model FLOP utilisation: unknown; {entry['peak_origin']}.")
    else:
        sentences.append(
            f"Model FLOP utilisation: {entry['mfu']:.1%} of {entry['peak_flops'] / 1e12:,.3g} "
            f"TFLOP/s ({entry['peak_origin']}), at {entry['flops_per_image'] / 1e9:,.3g} GFLOP per "
            "image (3 forward passes, or 1 if frozen; a multiply-add counts as 2)."
        )
    memory = entry["peak_memory_bytes"]
    if memory:
        sentences.append(f"Peak memory: {memory / 2**30:,.2f} GiB ({entry['peak_memory_of']}).")
    sentences.append(
        f"The first call took {entry['first_call_seconds']:,.1f} s, including compilation or "
        "loading from the compilation cache."
    )
    return sentences
