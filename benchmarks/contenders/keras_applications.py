"""Keras's own applications, on the backend that KERAS_BACKEND says.

They are trained by `train_on_batch`. `lower` has the same step as a function, for compilers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


# Networks with layers that normalise the images; those of EfficientNet cannot be left out.
_OWN_PREPROCESSING = {
    "convnext_tiny": {"include_preprocessing": False},
    "convnext_base": {"include_preprocessing": False},
    "convnext_large": {"include_preprocessing": False},
    "efficientnet_b0": {},
}


def normalises(network: str) -> bool:
    """Whether the network itself normalises images of values from 0 to 255."""
    return _OWN_PREPROCESSING.get(network) == {}


def model(task: Task) -> keras.Model:
    """The network with a linear classifier, of a task's dtype."""
    if task.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    backbone = getattr(keras.applications, _NETWORKS[task.network])(
        include_top=False,
        weights=None,
        pooling="avg",
        input_shape=(task.size, task.size, 3),
        **_OWN_PREPROCESSING.get(task.network, {}),
    )
    logits = keras.layers.Dense(CLASSES, dtype="float32")(backbone.output)
    return keras.Model(backbone.input, logits)


class Contender:
    """One task, ready to run."""

    def __init__(self, task: Task, _: str):
        if task.kind not in ("train", "predict"):
            raise ValueError(f"{task.kind} is not timed here")
        self._model = model(task)
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


def lower(task: Task, machine: object, devices: Sequence[Any]) -> Any:
    """The training step of a task on JAX, lowered for a device that need not exist.

    The step is what Keras's guide to JAX loops has: `stateless_call`, AdamW's `stateless_apply`.

    Args:
      task: A task of the kind "train".
      machine: Not used.
      devices: The machine's `jax.Device`.

    Returns:
      The `jax.stages.Lowered` of (state, uint8 images, int32 labels) -> (state, loss), whose state
      is donated.
    """
    import jax
    import jax.numpy as jnp

    network = model(task)
    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
    optimizer.build(network.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(trained, others, images, labels):
        x = images.astype(jnp.float32)
        if not normalises(task.network):
            x = (x / 255.0 - 0.5) / 0.5
        logits, others = network.stateless_call(trained, others, x, training=True)
        return cross_entropy(labels, logits), others

    def step(state, images, labels):
        trained, others, moments = state
        (value, others), grads = jax.value_and_grad(loss, has_aux=True)(
            trained, others, images, labels
        )
        trained, moments = optimizer.stateless_apply(moments, grads, trained)
        return (trained, others, moments), value

    variables = (network.trainable_variables, network.non_trainable_variables, optimizer.variables)
    state = tuple([variable.value for variable in some] for some in variables)
    images = jax.ShapeDtypeStruct((task.batch, task.size, task.size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((task.batch,), jnp.int32)
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (state, images, labels),
    )
    return jax.jit(step, donate_argnums=0).lower(*placed)


def about() -> dict[str, str]:
    """Versions, and the backend."""
    return {"keras": keras.__version__, "backend": keras.backend.backend()}
