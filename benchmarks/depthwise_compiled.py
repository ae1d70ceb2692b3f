"""Cycles of all forms of the depthwise convolution on a TPU that is not at hand.

python -m benchmarks.depthwise_compiled [--target=v5e-1] [--batch=64] [--dtypes=bfloat16]
                                        [--cases=7:1:24:96,...] [--seconds=600]
                                        [--out=benchmarks/results/compiled]

Nothing runs. The TPU's compiler (the extra [plan-tpu]) compiles each form by itself. For its own
operations it estimates cycles. For kernels it simulates the scheduled instructions, with all loops
and copies from memory. Maps come and go with height and width as the outer dimensions, as the
neighbours of a depthwise convolution have them in a network.

A case is KERNEL:STRIDE:SIDE:CHANNELS; by default those of ConvNeXt-T, EfficientNet-B0 and
MobileNet V1 at 96 pixels. The results are written to OUT/TARGET/depthwise_DATE.json, and the
standard output gets a Markdown table and the corresponding `bloodjax.ops.depthwise_tpu.TPU_FORMS`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import record
from benchmarks.depthwise_forms import DIRECTIONS, Case
from bloodjax.ops import depthwise_gpu, depthwise_mosaic
from bloodjax.planning import compilers, machines

FORMS = {
    "native": depthwise_gpu.NATIVE,
    "mosaic": depthwise_gpu.Form(
        depthwise_mosaic.forward, depthwise_mosaic.input_grad, depthwise_mosaic.kernel_grad
    ),
}
# By the side of the map, because large maps take longest: up to a minute each.
_CASES = (
    *((7, 1, 3, 768), (5, 1, 3, 1152), (3, 1, 3, 1152), (3, 1, 3, 1024)),
    *((7, 1, 6, 384), (5, 1, 6, 672), (5, 1, 6, 480), (3, 1, 6, 480), (3, 1, 6, 512)),
    *((5, 2, 6, 672), (3, 2, 6, 512)),
    *((7, 1, 12, 192), (5, 1, 12, 240), (3, 1, 12, 256), (3, 2, 12, 240), (3, 2, 12, 256)),
    *((7, 1, 24, 96), (3, 1, 24, 128), (3, 1, 24, 144), (5, 2, 24, 144), (3, 2, 24, 128)),
    *((3, 2, 48, 64), (3, 2, 48, 96), (3, 1, 48, 32)),
)
_SCHEDULED = re.compile(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"')
_ESTIMATED = re.compile(r'"estimated_cycles":"(\d+)"')


def cycles(text: str) -> int | None:
    """Cycles of a compiled program's text; None if the compiler gives none for its kernel."""
    total = 0
    for line in text[text.index("ENTRY") :].splitlines():
        kernel = "tpu_custom_call" in line
        found = (_SCHEDULED if kernel else _ESTIMATED).search(line)
        count = int(found[1]) if found else 0
        if kernel and not count:  # without the flag, or the simulation gave up
            return None
        total += count
    return total


def compiled_text(form: str, direction: str, case: Case, device: jax.Device) -> str:
    """The program of a form for `device`; "input_grad_added" adds another gradient."""
    out = (case.side - 1) // case.stride + 1
    maps = {"x": (case.side, case.side), "grad": (out, out)}
    sharding = jax.sharding.SingleDeviceSharding(device)

    def shape(name):
        if name == "kernel":
            size = (case.kernel, case.kernel, case.channels)
        else:
            size = (*maps[name], case.batch, case.channels)
        return jax.ShapeDtypeStruct(size, case.dtype, sharding=sharding)

    names = {
        "forward": ("x", "kernel"),
        "input_grad": ("grad", "kernel"),
        "input_grad_added": ("grad", "kernel", "x"),
    }
    names = names.get(direction, ("x", "grad"))
    direction = direction.removesuffix("_added")
    extra = {"input_grad": {"size": maps["x"]}, "kernel_grad": {"window": (case.kernel,) * 2}}
    arguments = {**case.shape, **extra.get(direction, {})}

    def run(*operands):
        operands = [
            jnp.transpose(a, (2, 0, 1, 3)) if name in maps else a
            for name, a in zip(names, operands, strict=True)
        ]
        result = getattr(FORMS[form], direction)(*operands, **arguments)
        return result if direction == "kernel_grad" else jnp.transpose(result, (1, 2, 0, 3))

    return jax.jit(run).lower(*map(shape, names)).compile().as_text()


def compare(case: Case, direction: str, device: jax.Device) -> dict[str, Any]:
    """Cycles of all forms: `case`, `direction`, `forms` (name -> cycles or None) and `best`."""
    found = {form: cycles(compiled_text(form, direction, case, device)) for form in FORMS}
    known = {form: count for form, count in found.items() if count is not None}
    best = min(known, key=known.get) if len(known) == len(found) else "native"
    return {
        "case": dataclasses.asdict(case),
        "direction": direction,
        "forms": found,
        "best": best,
    }


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table of thousands of cycles."""
    lines = ["| kernel | stride | side | channels | direction | native | mosaic |"]
    lines.append("|" + " --- |" * 7)
    for result in results:
        case = result["case"]
        numbers = [
            "-" if count is None else f"{count / 1e3:.1f}" for count in result["forms"].values()
        ]
        cells = [case["kernel"], case["stride"], case["side"], case["channels"]]
        lines.append(f"| {' | '.join(map(str, [*cells, result['direction'], *numbers]))} |")
    return "\n".join(lines)


def entries(results: list[dict[str, Any]]) -> dict[tuple, tuple[tuple[int, str], ...]]:
    """The table `TPU_FORMS` of the results, where neighbours of the same form are merged."""
    sides: dict[tuple, dict[int, set[str]]] = {}
    for result in results:
        case = result["case"]
        key = (result["direction"], case["kernel"], case["stride"], case["dtype"])
        sides.setdefault(key, {}).setdefault(case["side"], set()).add(result["best"])
    found = {}
    for key, forms in sides.items():
        steps: list[tuple[int, str]] = []
        for side in sorted(forms):
            form = "mosaic" if forms[side] == {"mosaic"} else "native"
            if steps and steps[-1][1] == form:
                steps.pop()
            steps.append((side, form))
        found[key] = tuple(steps)
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="v5e-1")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--cases", default="")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=pathlib.Path, default="benchmarks/results/compiled")
    chosen = parser.parse_args()
    cases = [tuple(map(int, text.split(":"))) for text in chosen.cases.split(",") if text]
    machine = machines.machine(chosen.target)
    if machine.platform != "tpu":
        parser.error(f"--target is {chosen.target}, expected a TPU: a GPU's compiler has no cycles")
    with tempfile.TemporaryDirectory() as folder:
        # With this flag the compiler simulates what it has scheduled, kernels included.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={folder}"
        compilers.prepare(machine)
        device = compilers.devices(machine)[0]
        todo = [
            (Case(*numbers, batch=chosen.batch, dtype=dtype), direction)
            for dtype in chosen.dtypes.split(",")
            for numbers in cases or _CASES
            for direction in DIRECTIONS
        ]
        results, began = [], time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):  # keeps what it has
            for case, direction in todo:
                if time.monotonic() - began > chosen.seconds:
                    break
                results.append(compare(case, direction, device))
                print(case, direction, results[-1]["forms"], file=sys.stderr, flush=True)
    left_out = [[dataclasses.asdict(case), direction] for case, direction in todo[len(results) :]]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    content = {
        "compiler": compilers.version(machine),
        "versions": versions,
        "results": results,
        "left_out": left_out,
    }
    path = record.write(chosen.out, chosen.target, content, "depthwise_")
    print(table(results), *entries(results).items(), f"written to {path}", sep="\n")


if __name__ == "__main__":
    main()
