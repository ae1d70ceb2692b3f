"""The figures of a compiled step, for a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bloodjax.planning.machines import Machine
from bloodjax.planning.program import Operation, Program

_MAX_OPERATIONS = 15
# Keys of the dearest phase that the plan repeats at its top.
MAIN = (
    *("peak_bytes", "argument_bytes", "temp_bytes", "flops", "bytes_accessed", "main_memory_bytes"),
    *("estimated_cycles", "estimated_step_seconds", "images_per_second", "mfu", "roofline"),
    *("collective_bytes", "needed_collective_bytes", "by_kind", "by_stage"),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step that was compiled.

    Attributes:
      program: What it runs; None if it does not fit the machine's memory.
      flops: Operations by the compiler's count; None if it does not count them.
      bytes: Bytes that all operations access by the compiler's count, or None.
      needed: Memory that the compiler said it needs, if it did not fit.
      seconds: Time that the compilation took.
    """

    program: Program | None
    flops: float | None
    bytes: float | None
    needed: int | None
    seconds: float


def figures_of(
    compiled: Compiled,
    machine: Machine,
    batch_size: int,
    steps: int = 1,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """A compiled step's figures, for one step and one device.

    Args:
      compiled: The step.
      machine: The machine.
      batch_size: Images of a step, over all devices.
      steps: Steps that a call of the program runs.
      dtype: Data type of products, for the roofline.
    """
    found = compiled.program
    if found is None:
        empty = dict.fromkeys((*MAIN, "collectives", "recomputed", "copies", "moves", "operations"))
        return empty | {
            "fits": False,
            "peak_bytes": compiled.needed,
            "compile_seconds": round(compiled.seconds, 1),
        }
    cycles = None if found.cycles is None else found.cycles / steps
    compute = cycles / machine.clock if cycles is not None and machine.clock else None
    links = sum(_link_seconds(op, machine) for op in found.collectives) / steps
    kernels = sum(_kernel_seconds(op, machine) for op in found.operations) / steps
    seconds = None if compute is None else compute + links + kernels
    flops = _counted(compiled.flops, found, lambda op: op.flops) / steps
    total = _counted(compiled.bytes, found, lambda op: op.traffic.total) / steps
    main = found.traffic.main / steps
    peak = machine.peak_flops(dtype)
    bound = {"compute": flops / peak if peak else None, "memory": main / machine.bandwidth}
    # What takes the place of cycles where there are none.
    unit = "main_bytes" if cycles is None else "cycles"
    memory = found.memory

    def by(key: Callable[[Operation], str]) -> dict[str, int]:
        sums = {name: round(row[unit] / steps) for name, row in found.by(key).items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    return {
        "fits": memory.peak <= machine.memory,
        "peak_bytes": memory.peak,
        "argument_bytes": memory.arguments,
        "output_bytes": memory.outputs,
        "temp_bytes": memory.temporaries,
        "code_bytes": memory.code,
        "flops": round(flops),
        "bytes_accessed": round(total),
        "main_memory_bytes": round(main),
        "estimated_cycles": None if cycles is None else round(cycles),
        "estimated_compute_seconds": compute,
        "estimated_collective_seconds": links,
        "estimated_kernel_seconds": kernels,
        "estimated_step_seconds": seconds,
        "images_per_second": batch_size / seconds if seconds else None,
        "roofline": {
            "compute_seconds": bound["compute"],
            "memory_seconds": bound["memory"],
            "images_per_second_at_most": _at_most(batch_size, *bound.values(), links),
        },
        "collective_bytes": sum(op.payload for op in found.collectives) // steps,
        "collectives": _collectives(found, steps),
        "by_kind": by(lambda op: op.group),
        "by_stage": by(lambda op: op.stage),
        "by_kind_unit": unit,
        "recomputed": _sums(found, lambda op: op.recomputed, steps),
        "copies": _sums(found, lambda op: op.copies, steps),
        "moves": _sums(found, lambda op: op.moves, steps),
        "without_estimate": sorted({op.target or op.collective for op in found.without_estimate}),
        "operations_without_estimate": len(found.without_estimate),
        "loops_of_unknown_length": len(found.loops),
        "operations": _dearest(found, unit, steps),
        "compile_seconds": round(compiled.seconds, 1),
    }


def _at_most(batch_size: int, compute: float | None, memory: float, links: float) -> float | None:
    longest = max(compute or 0.0, memory, links)
    return batch_size / longest if longest else None


def _counted(by_compiler: float | None, found: Program, of: Callable[[Operation], int]) -> float:
    """A sum over all operations: the compiler's, in which loops count once, times what they repeat.

    Args:
      by_compiler: The compiler's count; None if it makes none.
      found: The program.
      of: Our own count for all runs of an operation.
    """
    total = sum(of(op) for op in found.operations)
    once = sum(of(op) / op.runs for op in found.operations if op.runs)
    return by_compiler * total / once if by_compiler and once else float(total)


def _link_seconds(op: Operation, machine: Machine) -> float:
    """Time of a collective at the links' published rate. A sum sends each share twice."""
    participants = op.participants or machine.chips
    share = (participants - 1) / participants
    times = 2 if op.collective == "all-reduce" else 1
    return times * share * op.payload / machine.link


def _kernel_seconds(op: Operation, machine: Machine) -> float:
    """The least time of a TPU's Pallas kernel without an estimate: of its products, or its memory.

    The kernels of this library compute on the vector units.
    """
    if not op.is_kernel or op.cycles is not None or machine.vector_flops is None:
        return 0.0
    return max(op.flops / machine.vector_flops, op.traffic.main / machine.bandwidth)


def _collectives(found: Program, steps: int) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for op in found.collectives:
        row = kinds.setdefault(op.collective, {"number": 0, "bytes": 0})
        row["number"] += op.runs / steps
        row["bytes"] += op.payload / steps
    return kinds


def _sums(found: Program, matches: Callable[[Operation], bool], steps: int):
    chosen = [op for op in found.operations if matches(op)]
    return {
        "operations": sum(op.runs for op in chosen) // steps,
        "cycles": sum(op.cycles or 0 for op in chosen) // steps,
        "bytes": sum(op.traffic.total for op in chosen) // steps,
    }


def _dearest(found: Program, unit: str, steps: int) -> list[dict[str, Any]]:
    def cost(op: Operation) -> int:
        return (op.cycles or 0) if unit == "cycles" else op.traffic.main

    first = sorted(found.operations, key=cost, reverse=True)[:_MAX_OPERATIONS]
    return [
        {
            "operation": op.name,
            "group": op.group,
            "shape": op.shape,
            "cycles": None if op.cycles is None else op.cycles // steps,
            "main_bytes": op.traffic.main // steps,
            "op_name": op.op_name,
            "source": op.source,
        }
        for op in first
    ]
