"""onnxruntime on the file that `bloodjax export --format=onnx` makes of a network."""

from __future__ import annotations

import os

# bloodjax only writes the file here; it leaves a GPU to onnxruntime.
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import onnxruntime

from benchmarks.contenders import ours
from benchmarks.tasks import CLASSES, Task
from bloodjax.augment.tta import TTAConfig
from bloodjax.exporting import exporter
from bloodjax.training import factory

_VIEWS = {"predict": TTAConfig(), "predict_d4": TTAConfig("d4")}


class Contender:
    """One task, ready to run."""

    def __init__(self, task: Task, _: str):
        if task.kind not in _VIEWS:
            raise ValueError(f"{task.kind} is not timed here")
        config = ours.config(task)
        mean, std = factory.normalisation(config)
        content = exporter.onnx_bytes(
            factory.network(config, CLASSES),
            factory.variables(config, CLASSES),
            task.size,
            mean=mean,
            std=std,
            chosen=_VIEWS[task.kind],
        )
        providers = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(content, providers=providers)
        self._input = self._session.get_inputs()[0].name
        shape = (task.batch, task.size, task.size, 3)
        self._images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def run(self, steps: int) -> None:
        """Takes steps."""
        for _ in range(steps):
            self._session.run(None, {self._input: self._images})


def about() -> dict[str, str]:
    """Versions, and the device."""
    providers = ",".join(onnxruntime.get_available_providers())
    return {"onnxruntime": onnxruntime.__version__, "device": providers}
