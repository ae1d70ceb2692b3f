"""Keras's own applications, on the backend that KERAS_BACKEND says, trained by `train_on_batch`."""

from __future__ import annotations

import keras
import numpy as np

from benchmarks.tasks import CLASSES, Task

_NETWORKS = {
    "convnext_tiny": "ConvNeXtTiny",
    "convnext_base": "ConvNeXtBase",
    "convnext_large": "ConvNeXtLarge",
    "efficientnet_b0": "EfficientNetB0",
    "mobilenetv1_100": "MobileNet",
    "resnet50": "ResNet50",
    "inception_v3": "InceptionV3",
    "vgg16": "VGG16",
}


class Contender:
    """One task, ready to run."""

    def __init__(self, task: Task, _: str):
        if task.kind not in ("train", "predict"):
            raise ValueError(f"{task.kind} is not timed here")
        if task.dtype == "bfloat16":
            keras.mixed_precision.set_global_policy("mixed_bfloat16")
        build = getattr(keras.applications, _NETWORKS[task.network])
        backbone = build(
            include_top=False,
            weights=None,
            pooling="avg",
            input_shape=(task.size, task.size, 3),
        )
        logits = keras.layers.Dense(CLASSES, dtype="float32")(backbone.output)
        self._model = keras.Model(backbone.input, logits)
        self._model.compile(
            optimizer=keras.optimizers.AdamW(1e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        rng = np.random.default_rng(0)
        shape = (task.batch, task.size, task.size, 3)
        self._images = rng.integers(0, 256, shape, dtype=np.uint8)
        self._x = self._normalised()
        self._y = np.arange(task.batch) % CLASSES
        self._trains = task.kind == "train"

    def run(self, steps: int) -> None:
        """Takes steps, each of which returns its loss or logits to the host."""
        for _ in range(steps):
            if self._trains:
                self._model.train_on_batch(self._x, self._y)
            else:
                self._model.predict_on_batch(self._normalised())

    def _normalised(self) -> np.ndarray:
        return (self._images.astype(np.float32) / 255 - 0.5) / 0.5


def about() -> dict[str, str]:
    """Versions, and the backend."""
    return {"keras": keras.__version__, "backend": keras.backend.backend()}
