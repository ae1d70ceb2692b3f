"""Attribution maps of a batch of images by any of the methods."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PyTree, UInt8

from bloodjax.attribution import methods
from bloodjax.models.head import Network
from bloodjax.training.step_input import normalise

METHODS = tuple(methods.METHODS)
DEFAULT = "integrated_cam"
# Images in a call of the compiled function. Fewer are padded, except a single one.
BATCH_SIZE = 16


def explain(
    model: Network,
    variables: PyTree,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    images: UInt8[np.ndarray, "n size size 3"],
    classes: Int[np.ndarray, " n"],
    method: str = DEFAULT,
) -> Float32[np.ndarray, "n size size"]:
    """Maps of what in each image raises the logit of a class.

    Args:
      model: The network.
      variables: Its variables, on this process's devices or on the host.
      mean: Per-channel mean in 0..1 that the network expects.
      std: Per-channel standard deviation in 0..1 that the network expects.
      images: RGB images of the network's size.
      classes: Index of the class of each image.
      method: One of `METHODS`.

    Returns:
      Maps in 0..1, computed in float32. The largest value of a map is 1, unless all are 0.

    Raises:
      ValueError: `method` is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    maps = np.empty(images.shape[:3], np.float32)
    variables = jax.device_put(variables, jax.local_devices()[0])
    model = in_float32(model)
    for start in range(0, len(images), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        n = len(images[part])
        rows = np.minimum(np.arange(1 if len(images) == 1 else BATCH_SIZE), n - 1)
        found = _explain(
            method,
            model,
            tuple(mean),
            tuple(std),
            variables,
            images[part][rows],
            np.asarray(classes[part], np.int32)[rows],
        )
        maps[part] = np.asarray(found)[:n]
    return maps


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _explain(
    method: str,
    model: Network,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    variables: PyTree,
    images: UInt8[Array, "b size size 3"],
    classes: Int[Array, " b"],
) -> Float[Array, "b size size"]:
    inputs = normalise(images, mean, std)
    return methods.scaled(methods.METHODS[method](model, variables, inputs, classes))


def in_float32(model: Network) -> Network:
    """The same network in float32 on one device, which stores the activations of all blocks."""
    backbone = model.backbone.clone(dtype=jnp.float32, axis_name=None, remat=False)
    return Network(backbone, model.head.clone(dtype=jnp.float32, axis_name=None))
