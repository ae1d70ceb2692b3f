"""Compiles bloodjax's training step, Keras's and plain Flax's for a machine that is not at hand.

python -m benchmarks.compiled [--networks=resnet50,...] [--batches=64,256] [--sizes=96,224]
                              [--targets=v5e-1,v6e-1,h200] [--contenders=bloodjax,keras,flax]
                              [--out=benchmarks/results/compiled] [--texts=DIR]

Nothing runs: all figures are estimates of the machine's own compiler, which runs on any host. They
need the extra [plan-tpu] or [plan-gpu], and [parity] for Keras. By default all seven networks are
compiled at batch 64 and 96 pixels for one TPU v5e. Each compilation has a process of its own and
takes one to eight minutes. A row whose lowered step and versions have not changed since the last
result is kept without compiling.

What is compiled, in bfloat16 with float32 parameters, AdamW and the state donated:

- bloodjax: the step that a run takes by default, without augmentation: the batch is gathered from
  a dataset of 16 batches on the device, BatchNorm is frozen (`freeze="batchnorm"`), the gradient is
  clipped by its norm, a step that is not finite is skipped, metrics are accumulated. The head is
  the default one, of five dense layers.
- bloodjax_batchnorm: the same with BatchNorm trained, as Keras and Flax train it.
- keras: Keras 3 on JAX, `keras.applications` under the policy mixed_bfloat16.
- flax: flax.linen's layers with optax.adamw.

Keras and Flax get one batch as an argument, as uint8, and normalise it; they train BatchNorm, and
neither clip nor skip. Memory is a device's peak; of ours, the dataset is not counted.

A TPU's compiler estimates no cycles of a Pallas kernel within a step. The depthwise convolution's
kernels are compiled by themselves as well, and the cycles of their simulated schedule are added.

The results are written to OUT/TARGET.json after each row, from which `python -m benchmarks.tables`
fills RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks.tasks import Task

NETWORKS = (
    "convnext_tiny",
    "convnext_base",
    "efficientnet_b0",
    "resnet50",
    "mobilenetv1_100",
    "inception_v3",
    "vgg16",
)
TARGETS = ("v5e-1", "v6e-1", "h200")
# Kernels that one process compiles; the simulation of each keeps up to a gigabyte.
_KERNELS = 4
CONTENDERS = ("bloodjax", "bloodjax_batchnorm", "keras", "flax")


def update(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Puts a row in place of the earlier one of its contender and task, or at the end.

    Args:
      path: a target's results; may not exist yet.
      row: `contender`, `task`, and figures.
    """
    rows = [old for old in read(path) if _key(old) != _key(row)]
    content = {"device": path.stem, "rows": sorted([*rows, row], key=_key)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a target's results."""
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


def _key(row: dict[str, Any]) -> tuple:
    task = row["task"]
    return (task["network"], task["batch"], task["size"], row["contender"])


def compile_row(
    contender: str,
    target: str,
    task: Task,
    known: str = "",
    texts: pathlib.Path | None = None,
    kernel_cycles: dict[tuple, int] | None = None,
) -> dict[str, Any]:
    """Compiles a step in a process of its own.

    Args:
      contender: one of `CONTENDERS`.
      target: one of `TARGETS`.
      task: of the kind "train".
      known: checksum of the step that has been compiled, or "".
      texts: folder for the compiled programs' texts.
      kernel_cycles: cycles of kernels that need not be compiled (`depthwise_cycles`).

    Returns:
      What `benchmarks.compiled_worker` prints, with `kernel_cycles`: those of our kernels, which
      `cycles` includes. Or `{"error": ...}`.
    """
    request = {"contender": contender, "target": target, "task": dataclasses.asdict(task)}
    request["known"] = known
    if texts:
        texts.mkdir(parents=True, exist_ok=True)
        name = f"{contender}_{task.network}_{task.batch}_{task.size}_{target}.txt"
        request["text"] = str(texts / name)
    found = _ask(request)
    kernels = [tuple(kernel) for kernel in found.pop("kernels_of_ours", ())]
    if kernels:
        cycles = dict(kernel_cycles or {})
        others = [kernel for kernel in dict.fromkeys(kernels) if kernel not in cycles]
        for start in range(0, len(others), _KERNELS):
            some = others[start : start + _KERNELS]
            answer = _ask({"target": target, "kernels": some})
            if "error" in answer:
                return answer
            cycles.update(zip(some, answer["cycles"], strict=True))
        add_kernels(found, kernels, cycles)
    return found


def depthwise_cycles(folder: pathlib.Path) -> dict[tuple, int]:
    """Cycles of kernels in the newest results of `benchmarks.depthwise_compiled`.

    Args:
      folder: results of one target; need not exist.

    Returns:
      An element of `compiled_worker.kernel_cases` -> cycles.
    """
    files = sorted(folder.glob("depthwise_*.json"))
    results = json.loads(files[-1].read_text("utf-8"))["results"] if files else []
    fields = ("kernel", "stride", "side", "channels", "batch", "dtype")
    return {
        (result["direction"], *(result["case"][field] for field in fields)): cycles
        for result in results
        if (cycles := result["forms"].get("mosaic"))
    }


def add_kernels(row: dict[str, Any], kernels: list, cycles: dict[Any, int | None]) -> None:
    """Adds the cycles of kernels to those of a step, as far as they are known."""
    known = [cycles[kernel] for kernel in kernels if cycles[kernel] is not None]
    row["kernel_cycles"] = sum(known)
    row["cycles"] += row["kernel_cycles"]
    row["calls_without_cycles"] -= len(known)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compiled_worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"status {done.returncode}"}
    return json.loads(done.stdout)


def _summary(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"left out: {found['error']}"
    parts = []
    if found["cycles"]:
        parts.append(f"{found['cycles'] / 1e6:.2f} M cycles")
    parts.append(f"{found['bytes'] / 1e9:.2f} GB accessed")
    parts.append(f"{found['peak_bytes'] / 1e9:.2f} GB peak")
    return ", ".join(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="64")
    parser.add_argument("--sizes", default="96")
    parser.add_argument("--targets", default=TARGETS[0])
    parser.add_argument("--contenders", default="bloodjax,keras,flax")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/compiled")
    )
    parser.add_argument("--texts", type=pathlib.Path)
    chosen = parser.parse_args()
    for flag, known in (
        ("networks", NETWORKS),
        ("targets", TARGETS),
        ("contenders", CONTENDERS),
    ):
        values = getattr(chosen, flag).split(",")
        unknown = [value for value in values if value not in known]
        if unknown:
            parser.error(f"--{flag}: {unknown[0]!r}, expected some of {', '.join(known)}")
        setattr(chosen, flag, values)
    for flag in ("batches", "sizes"):
        values = getattr(chosen, flag).split(",")
        if not all(value.isdigit() for value in values):
            parser.error(f"--{flag}: {getattr(chosen, flag)!r}, expected numbers")
        setattr(chosen, flag, [int(value) for value in values])
    return chosen


def main() -> None:
    """Runs the command."""
    chosen = _arguments()
    failed = False
    for target, size, batch, network, contender in itertools.product(
        chosen.targets, chosen.sizes, chosen.batches, chosen.networks, chosen.contenders
    ):
        task = Task("train", network, batch, size, "bfloat16")
        path = chosen.out / f"{target}.json"
        key = {"contender": contender, "task": dataclasses.asdict(task)}
        known = next((row for row in read(path) if _key(row) == _key(key)), {"content": ""})
        kernels = depthwise_cycles(chosen.out / target.replace("-", "_"))
        found = compile_row(contender, target, task, known["content"], chosen.texts, kernels)
        failed |= "error" in found
        new = "cycles" in found
        if new:
            today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
            update(path, {**key, **found, "date": today})
        shown = found if new or "error" in found else known
        print(f"{target}, {task}, {contender}: {_summary(shown)}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
