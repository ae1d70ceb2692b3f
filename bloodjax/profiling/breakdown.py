"""The tables of a profile: what a step's time went to, by group and by single operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bloodjax.profiling import hlo, trace

IDLE = "idle, host"
UNNAMED = "not named in the trace"
_OPERATIONS = 15
_ADDED = hlo.Instruction("", "")


def tables(
    spans: Sequence[trace.Span],
    program: hlo.Program,
    kinds: Mapping[str, str],
    steps: int,
    seconds: float,
    threads: int,
) -> dict[str, list[dict[str, Any]]]:
    """Where the time of some steps went.

    Args:
      spans: their operations.
      program: the compiled step.
      kinds: of the network's modules; see `models.summary.kinds`.
      steps: how many were taken.
      seconds: what they took, all together.
      threads: see `trace.account`.

    Returns:
      "groups" and "operations", each a list, the largest first; empty without spans. In each row
      `ms` is wall time a step, every moment in equal parts to the threads at work (on a GPU:
      streams), so that the groups' add up to a step; `share` is the part of a step; `thread_ms` is
      the time of all threads a step.
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
        return hlo.group(program.instructions.get(operation, _ADDED), kinds)

    def operation(name: str) -> dict[str, str]:
        instruction = program.instructions.get(name, _ADDED)
        return {
            "operation": name,
            "group": group(name),
            "shape": instruction.shape,
            "op_name": instruction.op_name,
            "source": instruction.source,
        }

    groups = rows(times.by(group), lambda name: {"group": name})
    groups.append({"group": IDLE, **row(1e9 * seconds - times.wall.total(), 0.0)})
    return {"groups": groups, "operations": rows(times, operation)[:_OPERATIONS]}


def as_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of `profile.json` to read on a terminal."""
    return "\n".join(_phase(name, entry) for name, entry in entries.items())


def _phase(name: str, entry: Mapping[str, Any]) -> str:
    lines = [f"{name}: {entry['device']}", *(f"  {line}" for line in facts(entry))]
    if entry["note"]:
        lines.append(f"  {entry['note']}")
    if entry["groups"]:
        lines += ["", f"  {'ms a step':>9} {'share':>7} {'threads':>9}  what"]
        lines += [f"  {_times(row)}  {row['group']}" for row in entry["groups"]]
        lines += ["", "  The longest single operations:"]
    for row in entry["operations"]:
        lines.append(f"  {_times(row)}  {row['operation']}  {row['shape']}  {row['source']}")
        lines.append(f"{'':31}{row['op_name']}")
    return "\n".join(lines) + "\n"


def _times(row: Mapping[str, Any]) -> str:
    return f"{row['ms']:9.2f} {row['share']:7.1%} {row['thread_ms']:9.2f}"


def facts(entry: Mapping[str, Any]) -> list[str]:
    """A phase's figures outside the tables, a sentence each."""
    sentences = [
        f"{entry['images_per_second']:,.1f} images/s: {entry['ms_per_step']:,.1f} ms a step "
        f"of {entry['batch_size']} images (mean of {entry['steps']}; tracing slows a little), "
        f"{entry['cpu_ms_per_step']:,.1f} ms of CPU time.",
    ]
    if entry["mfu"] is None:
        sentences.append(f"Model FLOP utilisation: not known; {entry['peak_origin']}.")
    else:
        sentences.append(
            f"Model FLOP utilisation: {entry['mfu']:.1%} of {entry['peak_flops'] / 1e12:,.3g} "
            f"TFLOP/s ({entry['peak_origin']}), at {entry['flops_per_image'] / 1e9:,.3g} GFLOP a "
            "image (3 forward passes; 1 where frozen; a multiply-add is 2)."
        )
    memory = entry["peak_memory_bytes"]
    if memory:
        sentences.append(f"Peak memory: {memory / 2**30:,.2f} GiB ({entry['peak_memory_of']}).")
    sentences.append(
        f"The first call took {entry['first_call_seconds']:,.1f} s, compiling or reading what was "
        "compiled before."
    )
    return sentences
