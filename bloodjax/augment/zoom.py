"""Enlarges or reduces images about their middle, as products with two matrices of weights.

Every sum and product is exact in float32 before it is rounded to a grey level, so that every
runtime gives the same pixels.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Weights of a zoom, and grey levels between its two passes, are multiples of 1 / these: products
# have 8 + 4 + 12 bits, as many as float32.
_WEIGHT_STEPS, _LEVEL_STEPS = 4096, 16.0


def zoom(
    images: UInt8[Array, "n size size 3"] | UInt8[np.ndarray, "n size size 3"], factor: float
) -> UInt8[Array, "n size size 3"]:
    """The images, enlarged about their middle; a jitted function may call it.

    Args:
      images: RGB images.
      factor: Factor; below 1 the images become smaller, and are reflected at their borders.
    """
    matrix = jnp.asarray(weights(images.shape[1], factor))
    rows = jnp.einsum(
        "ij,njkc->nikc", matrix, jnp.asarray(images).astype(jnp.float32), precision="highest"
    )
    rows = jnp.round(rows * _LEVEL_STEPS) / _LEVEL_STEPS
    both = jnp.einsum("ij,nkjc->nkic", matrix, rows, precision="highest")
    return jnp.round(both).astype(jnp.uint8)


def weights(size: int, factor: float) -> Float[np.ndarray, "{size} {size}"]:
    """Weight of each row of an image in each row of the one that is enlarged about its middle.

    Interpolation is linear, with antialiasing when the image becomes smaller. Rows outside the
    image are reflected at its border; unlike in `augment.affine`, the outermost row is repeated.
    Weights are multiples of 1 / 4096 and sum to 1.

    Args:
      size: Rows of the image.
      factor: Factor; below 1 the image becomes smaller.
    """
    reach = max(1.0, 1 / factor)  # of the triangular kernel, in rows of the image
    position = (np.arange(size) + 0.5 - size / 2) / factor + size / 2 - 0.5
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for tap in range(-math.ceil(reach), math.ceil(reach) + 1):
        index = np.floor(position) + tap
        weight = np.maximum(1 - np.abs(index - position) / reach, 0)
        folded = np.mod(index, 2 * size)
        source = np.where(folded < size, folded, 2 * size - 1 - folded).astype(int)
        np.add.at(matrix, (rows, source), weight)
    matrix = np.rint(_WEIGHT_STEPS * matrix / matrix.sum(axis=1, keepdims=True))
    matrix[rows, matrix.argmax(axis=1)] += _WEIGHT_STEPS - matrix.sum(axis=1)
    return (matrix / _WEIGHT_STEPS).astype(np.float32)
