"""Plans a run: compiles its own steps for a machine, and turns the compiler's figures into a plan.

A plan is a dict that is written as JSON. None of its figures is a measurement: they are the
compiler's, or follow from the compiled program and the machine's published rates.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.errors import UserError
from bloodjax.planning import batch_search, compilers, program, step_figures
from bloodjax.planning import images as images_lib
from bloodjax.planning.images import ImageCounts
from bloodjax.planning.machines import Machine
from bloodjax.planning.step_figures import Compiled
from bloodjax.planning.steps import RunSteps, batch_multiple, planned

EVALUATION = "evaluation"
# Images on a chip that fill a tile of a TPU; its depthwise kernels take whole tiles.
_TILE_IMAGES = 8
# Prediction batches that wait on the device; see `training.executor`.
_WAITING = 8
_SUFFIX = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How a TPU's compiler says that a program needs too much memory.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds")

NOTES = (
    "Nothing was run and nothing was measured: cycles, memory and bytes are the compiler's, for "
    "the program that it made here.",
    "Cycles are the compiler's own estimate of each operation. It has none for Pallas kernels, "
    "collectives and asynchronous copies. Time of collectives is their bytes at the links' "
    "published rate, without overlap; that of Pallas kernels the least that their operations or "
    "their memory take. Copies between memories are taken to be hidden.",
)


def plan(
    config: Config,
    machine: Machine,
    *,
    batch_size: int | None = None,
    images: int | None = None,
    classes: int | None = None,
    only: Collection[str] = (),
    search: bool = True,
) -> dict[str, Any]:
    """Plans a run on a machine. Call `compilers.prepare` first.

    Args:
      config: Config of the run.
      machine: The machine.
      batch_size: Batch size in place of the config's.
      images: Number of images; see `images.count`.
      classes: Number of classes; see `images.count`.
      only: Steps to compile: names of phases, and "evaluation"; by default all of the run.
      search: Whether to search the largest batch, which takes up to three more compilations.

    Returns:
      The plan; docs/plan.md explains its keys.

    Raises:
      UserError: The config does not fit the machine, or a value is not allowed.
    """
    if config.parallel == "pmap":
        console.log_info("planned under jit, which computes the same as pmap")
    config = planned(config, batch_size)
    counts = images_lib.count(config, images, classes)
    console.log_info(f"planning with {counts.origin}, {counts.classes} classes")
    devices = compilers.devices(machine)
    run = RunSteps(config, machine, devices, counts)
    chosen = _chosen(run, only)
    phases = {name: _phase(run, machine, name) for name in run.phases if name in chosen}
    evaluation = features = None
    if EVALUATION in chosen:
        compiled = _compile(run.lower_evaluation, "prediction", machine, run)
        evaluation = _evaluation(compiled, run, machine, phases)
    if any(run.is_cached(name) for name in phases):
        compiled = _compile(run.lower_features, "features", machine, run)
        features = step_figures.figures_of(compiled, machine, config.batch_size, dtype=config.dtype)
    main = phases[max(phases, key=lambda name: _cost(phases[name]))] if phases else evaluation
    result = {
        "device": machine.name,
        "device_kind": machine.kind,
        "chips": machine.chips,
        "network": config.model.name,
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "sharding": config.sharding,
        "fits": all(each["fits"] for each in (*phases.values(), evaluation) if each),
        **{key: main[key] for key in step_figures.MAIN},
        "memory_bytes": machine.memory,
        "largest_batch_size": None,
        "largest_batch_size_is": "not searched",
        "images": dataclasses.asdict(counts),
        "images_on_device": run.on_device,
        "steps_per_epoch": run.steps_per_epoch,
        **_times(run, counts, phases, evaluation, features),
        "phases": phases,
        "evaluation": evaluation,
        "features": features,
        "compiler": compilers.version(machine),
        "jax": jax.__version__,
        "notes": [*NOTES, *_notes_on_sizes(config, phases)],
    }
    _add_largest(result, config, machine, counts, phases, run, search)
    return result


def compared_with_device(
    plan: Mapping[str, Any], stats: Mapping[str, int]
) -> dict[str, float | int]:
    """A plan's memory against that of a device which ran the same config.

    Args:
      plan: A plan, as read from its JSON file.
      stats: `jax.Device.memory_stats()` after training, of the fullest device.

    Returns:
      `planned_bytes`, `measured_bytes` (the peak that the device's allocator reports), `ratio` of
      the first to the second, and `limit_bytes` (what the allocator may use).
    """
    measured = stats["peak_bytes_in_use"]
    peaks = [each["peak_bytes"] for each in (*plan["phases"].values(), plan["evaluation"]) if each]
    return {
        "planned_bytes": max(peaks),
        "measured_bytes": measured,
        "ratio": max(peaks) / measured,
        "limit_bytes": stats.get("bytes_limit", plan["memory_bytes"]),
    }


def _notes_on_sizes(config: Config, phases: Collection[str]) -> list[str]:
    """What the plan leaves out of phases whose images grow."""
    side = config.data.image_size
    return [
        f"config.phases.{name}.sizes is {sizes}: only the step at {side} px was compiled, and the "
        f"times are those of a phase with {side} px throughout."
        for name in phases
        if (sizes := getattr(config.phases, name).sizes)
    ]


def _chosen(run: RunSteps, only: Collection[str]) -> Collection[str]:
    known = (*run.phases, EVALUATION)
    for name in only:
        if name not in known:
            raise UserError(f"--steps={name}: expected {' or '.join(known)}, those of this run")
    return only or known


def _compile(
    lower: Callable[[], jax.stages.Lowered], what: str, machine: Machine, run: RunSteps
) -> Compiled:
    console.log_info(f"compiling the {what} step for {machine.name}; this takes minutes ...")
    started = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - started
        console.log_info(f"  {seconds:,.0f} s: it needs more memory than {machine.name} has")
        return Compiled(None, None, None, _needed(str(error), machine), seconds)
    found = program.analyse(compiled, run.layer_types)
    counted = compiled.cost_analysis() or {}
    seconds = time.perf_counter() - started
    console.log_info(f"  {seconds:,.0f} s")
    return Compiled(found, counted.get("flops"), counted.get("bytes accessed"), None, seconds)


def _needed(message: str, machine: Machine) -> int:
    """Bytes that a program needs, from the compiler's message that it has too few."""
    found = _USED.search(message)
    if not found:
        return machine.memory + 1
    number, suffix = (found[1], found[2]) if found[1] else (found[3], found[4])
    return max(int(float(number) * _SUFFIX[suffix]), machine.memory + 1)


def _phase(run: RunSteps, machine: Machine, name: str) -> dict[str, Any]:
    compiled = _compile(lambda: run.lower_train(name), f"{name} training", machine, run)
    figures = step_figures.figures_of(
        compiled, machine, run.config.batch_size, run.steps_per_call, run.config.dtype
    )
    peak = machine.peak_flops(run.config.dtype)
    seconds = figures["estimated_step_seconds"]
    flops = run.model_flops(name)
    rate = figures["images_per_second"]
    figures |= {
        "cached_features": run.is_cached(name),
        "model_flops_per_image": flops,
        "mfu": flops * rate / (peak * machine.chips) if peak and seconds else None,
        "needed_collective_bytes": run.needed_collectives(name),
        "resident_bytes": run.resident_bytes(name),
    }
    return figures


def _evaluation(compiled: Compiled, run: RunSteps, machine: Machine, phases) -> dict[str, Any]:
    """The prediction step's figures. While it runs, state and images of training stay."""
    figures = step_figures.figures_of(
        compiled, machine, run.config.batch_size, dtype=run.config.dtype
    )
    resident = max((each["resident_bytes"] for each in phases.values()), default=0)
    size = run.config.data.image_size
    waiting = (_WAITING - 1) * run.config.batch_size * size * size * 3 // machine.chips
    peak = figures["peak_bytes"] + max(0, resident - run.variables_bytes()) + waiting
    return figures | {
        "peak_bytes": peak,
        "fits": figures["fits"] and peak <= machine.memory,
        "mfu": None,
        "needed_collective_bytes": 0,
    }


def _cost(figures: Mapping[str, Any]) -> tuple[float, int]:
    return figures["estimated_step_seconds"] or 0.0, figures["peak_bytes"]


def _times(
    run: RunSteps,
    counts: ImageCounts,
    phases: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    features: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Time of each phase's epochs and of the run, if no phase stops early."""
    batch, config = run.config.batch_size, run.config
    once = evaluation["estimated_step_seconds"] if evaluation else None
    validation = -(-counts.validation // batch) * once if once else None
    epoch, total = {}, 0.0
    for name, figures in phases.items():
        step = figures["estimated_step_seconds"]
        if step is None or validation is None:
            return {"epoch_seconds": None, "run_seconds": None}
        epoch[name] = run.steps_per_epoch * step + validation
        total += config.phases[name].epochs * epoch[name]
        if run.is_cached(name) and features and features["estimated_step_seconds"]:
            total += -(-counts.train // batch) * features["estimated_step_seconds"]
    whole = set(epoch) == set(run.phases)
    return {"epoch_seconds": epoch or None, "run_seconds": total if whole and epoch else None}


def _add_largest(
    result: dict[str, Any],
    config: Config,
    machine: Machine,
    counts: ImageCounts,
    phases: Mapping[str, Mapping[str, Any]],
    run: RunSteps,
    search: bool,
) -> None:
    """Adds the largest batch that fits to a plan, or what one compilation lets expect."""
    if not phases:
        return
    name = max(phases, key=lambda each: phases[each]["peak_bytes"])
    batch, peak = config.batch_size, phases[name]["peak_bytes"]
    multiple = batch_multiple(config, machine.chips)
    most = counts.train // multiple * multiple
    if not search:
        if phases[name]["temp_bytes"] is not None:
            fixed = peak - phases[name]["temp_bytes"]
            result["largest_batch_size"] = batch_search.extrapolated(
                peak, fixed, batch, machine.memory, multiple, most
            )
            result["largest_batch_size_is"] = (
                "extrapolated from one compilation, as if temporary memory were proportional"
            )
        return

    def compile_for(size: int) -> int:
        console.log_info(f"searching the largest batch: trying {size:,}")
        other = RunSteps(planned(config, size), machine, run.devices, counts)
        compiled = _compile(lambda: other.lower_train(name), f"{name} training", machine, other)
        return compiled.program.memory.peak if compiled.program else compiled.needed

    temporaries = phases[name]["temp_bytes"]
    largest, peaks = batch_search.largest(
        {batch: peak},
        machine.memory,
        multiple,
        most,
        compile_for,
        tile=_TILE_IMAGES * machine.chips,
        fixed=0 if temporaries is None else peak - temporaries,
    )
    result["largest_batch_size"] = largest
    result["largest_batch_size_is"] = "the largest that was compiled and fits"
    if largest is not None:
        share = peaks[largest] / machine.memory
        result["largest_batch_size_is"] += f"; it takes {share:.0%} of the memory"
    result["peak_bytes_by_batch_size"] = {str(size): peaks[size] for size in sorted(peaks)}
