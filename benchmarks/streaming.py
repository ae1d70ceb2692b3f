"""Cost of streaming from ArrayRecord shards: host memory, and step time against data on the device.

python -m benchmarks.streaming --dir=DIR [--images=300000] [--network=convnext_tiny] [--batch=16]
                               [--seconds=120] [--out=benchmarks/results] [--memory_only]

Packs a dataset of rendered cells, each with a different shift, into DIR/set if it does not exist
(300,000 images of 96 pixels take 8.3 GB). Then measures, each in a separate process:

memory   Peak memory of a run with few steps: audit, splits, training steps, predictions on
         validation images, colour-histogram baseline. The streamed run on the dataset is compared
         with a run on 400 images on the device, which needs the memory of the network alone.
rate     Step time with streamed data and with data on the device, alternating. It needs memory for
         all images. The machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from benchmarks import record
from bloodjax import config as config_lib
from bloodjax.checkpoints.state import TrainState
from bloodjax.config import Config
from bloodjax.data import packing, sources
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import LazyImages
from bloodjax.data.synthetic import render
from bloodjax.evaluation import histogram_baseline
from bloodjax.training import factory, input_pipeline
from bloodjax.training.loader import TrainLoader
from bloodjax.training.step_config import Phase

_SIDE = 96
_RENDERED = 400
_SHIFTS = 31  # Along each axis.
_ROUNDS = 5
_VALIDATED = 512


def cells(n: int, side: int = _SIDE) -> Dataset:
    """`n` different labelled images, created lazily: 400 rendered cells with different shifts.

    Args:
      n: Number of images, at most 384,400.
      side: Side of the images in pixels.

    Raises:
      ValueError: `n` is too large.
    """
    rendered = render.render_dataset(_RENDERED, side)

    def load(indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k s s 3"]:
        shifts = indices // _RENDERED
        shifted = zip(
            rendered.images[indices % _RENDERED], shifts // _SHIFTS, shifts % _SHIFTS, strict=True
        )
        return np.stack([np.roll(image, (y, x), axis=(0, 1)) for image, y, x in shifted])

    if n > _RENDERED * _SHIFTS**2:
        raise ValueError(f"{n} images, expected at most {_RENDERED * _SHIFTS**2}")
    indices = np.arange(n)
    blank = ("",) * n
    return Dataset(
        images=LazyImages(load, indices, side),
        labels=rendered.labels[indices % _RENDERED],
        names=tuple(f"cell{i:06d}" for i in range(n)),
        classes=rendered.classes,
        splits=blank,
        groups=blank,
    )


def peak_bytes() -> int:
    """Peak host memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def config_of(spec: str, network: str, batch: int, on_device: str) -> Config:
    """Config of a run that trains all parameters from random weights."""
    config = config_lib.defaults()
    config.data.train, config.data.on_device, config.data.image_size = spec, on_device, _SIDE
    config.model.name, config.model.weights, config.batch_size = network, "", batch
    config.phases.finetune.freeze = "none"
    return config_lib.validate(config)


class Running:
    """Runs training steps on a dataset, a few at a time."""

    def __init__(self, config: Config, train: Dataset, first: Running | None = None):
        """Reuses the compiled steps of `first`, if given."""
        self.executor = first.executor if first else factory.executor(config, len(train.classes))
        self._loader = TrainLoader(config, self.executor, train)
        self._streams = contextlib.ExitStack()
        self._epoch = iter(())
        if first:
            self._phase, variables = first._phase, first.variables
        else:
            variables = factory.variables(config, len(train.classes))
            self._phase = Phase("none", _optimizer(config, variables, self._loader.steps_per_epoch))
        self.variables = jax.device_get(variables)
        self._state = self.executor.replicate(TrainState.create(self.variables, self._phase.tx))
        self._weights = self.executor.replicate(np.ones(len(train.classes), np.float32))

    def take(self, n: int) -> float:
        """Runs `n` calls and returns the seconds that they took."""
        started = time.perf_counter()
        for _ in range(n):
            call = next(self._epoch, None)
            if call is None:
                inputs = contextlib.closing(self._loader.epoch(0))
                self._epoch = iter(self._streams.enter_context(inputs))
                call = next(self._epoch)
            steps, data, order = call
            arguments = (self._phase, steps, self._state, data, order, self._weights)
            self._state, sums = self.executor.train(*arguments)
            jax.block_until_ready(sums)
        return time.perf_counter() - started

    def predict(self, images) -> None:
        """Predicts once, with the initial weights."""
        self.executor.predict(self.executor.replicate(self.variables), images, "none")

    def close(self) -> None:
        """Stops the threads of the stream."""
        self._streams.close()


def memory(spec: str, network: str, batch: int, steps: int, on_device: str) -> dict[str, Any]:
    """Peak memory of this process in bytes after each stage of a run."""
    config, found = config_of(spec, network, batch, on_device), {}
    with tempfile.TemporaryDirectory() as workdir:
        made = input_pipeline.prepare_splits(config, pathlib.Path(workdir), resumes=False)
    found["audit and splits"] = peak_bytes()
    running = Running(config, made.train)
    running.take(steps)
    found["training"] = peak_bytes()
    running.predict(made.validation.take(np.arange(min(_VALIDATED, len(made.validation)))).images)
    found["validation"] = peak_bytes()
    running.close()
    histogram_baseline.HistogramBaseline.fit(
        made.train.images, made.train.labels, len(made.train.classes)
    )
    return {**found, "baseline": peak_bytes()}


def rate(spec: str, network: str, batch: int, seconds: float) -> dict[str, Any]:
    """Seconds per step with streamed and resident data, and the median of their ratios."""
    dataset = sources.load(spec, _SIDE)
    resident = Running(config_of(spec, network, batch, "always"), dataset)
    streamed = Running(config_of(spec, network, batch, "never"), dataset, resident)
    ways = {"resident": resident, "streamed": streamed}
    each = {name: [] for name in ways}
    for way in ways.values():
        way.take(2)
    steps = max(2, int(seconds / (2 * _ROUNDS) / (resident.take(2) / 2)))
    for i in range(_ROUNDS):
        for name in sorted(ways, reverse=i % 2 == 1):
            ways[name].take(
                1
            )  # Not timed: a virtual machine takes memory back from a waiting process.
            each[name].append(ways[name].take(steps) / steps)
    streamed.close()
    ratios = [a / b for a, b in zip(each["resident"], each["streamed"], strict=True)]
    return {
        "steps": steps,
        "seconds_a_step": each,
        "rate_streamed_to_resident": statistics.median(ratios),
        "lowest_and_highest": [min(ratios), max(ratios)],
    }


def _optimizer(config: Config, variables, per_epoch: int):
    from bloodjax.training import optim

    options = config.phases.finetune
    return optim.optimizer(options, per_epoch, variables["params"], variables["batch_stats"])


def _in_process(worker: str, *arguments: str) -> dict[str, Any]:
    """Result of a worker that runs in a separate process with huge pages."""
    command = [sys.executable, "-m", "benchmarks.streaming", f"--worker={worker}", *arguments]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _pack(dataset: Dataset, folder: pathlib.Path) -> str:
    if not folder.exists() or (folder / ".unfinished").exists():
        print(f"packing {len(dataset):,} images into {folder}", file=sys.stderr, flush=True)
        packing.pack(dataset, folder, as_pixels=True)
    return str(folder)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--network", default="convnext_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="steps of the memory measurement")
    parser.add_argument(
        "--seconds", type=float, default=120, help="duration of the rate measurement"
    )
    parser.add_argument("--memory_only", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--worker", choices=("memory", "rate"), help=argparse.SUPPRESS)
    parser.add_argument("--on_device", default="never", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker == "memory":
        found = memory(str(flags.dir), flags.network, flags.batch, flags.steps, flags.on_device)
        print(json.dumps(found))
        return
    if flags.worker == "rate":
        print(json.dumps(rate(str(flags.dir), flags.network, flags.batch, flags.seconds)))
        return

    everything = cells(flags.images)
    spec = _pack(everything, flags.dir / "set")
    small = _pack(everything.take(np.arange(_RENDERED)), flags.dir / "few")
    common = (f"--network={flags.network}", f"--batch={flags.batch}")
    content = {"images": len(sources.load(spec, _SIDE)), **_named(flags)}
    on_device = (f"--dir={small}", f"--steps={flags.steps}", "--on_device=always")
    content["memory_model"] = model = _in_process("memory", *on_device, *common)
    streamed = _in_process("memory", f"--dir={spec}", f"--steps={flags.steps}", *common)
    content["memory_streamed"] = streamed
    content["bytes_beyond_the_model"] = max(streamed.values()) - max(model.values())
    print(f"host memory beyond the model's: {content['bytes_beyond_the_model'] / 1e9:.2f} GB")
    if not flags.memory_only:
        seconds = f"--seconds={flags.seconds}"
        content["rate"] = found = _in_process("rate", f"--dir={spec}", seconds, *common)
        low, high = found["lowest_and_highest"]
        print(
            f"streamed, {found['rate_streamed_to_resident']:.1%} of the rate on the device "
            f"({low:.1%} to {high:.1%} in {_ROUNDS} rounds of {found['steps']} steps)"
        )
    device = jax.devices()[0]
    name = record.device_name(device.platform, device.device_kind)
    print(record.write(flags.out, name, content, "streaming_"))


def _named(flags: argparse.Namespace) -> dict[str, Any]:
    return {"network": flags.network, "batch": flags.batch, "size": _SIDE}


if __name__ == "__main__":
    main()
