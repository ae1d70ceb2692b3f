"""Brings maps of the network's square back to the size of the image that the square was made of."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from bloodjax.data.options import frame_side


def restore(
    square: Float32[np.ndarray, "size size"], height: int, width: int, fit: str
) -> Float32[np.ndarray, "{height} {width}"]:
    """The map of an image at its own size, from the map of its square.

    It is the inverse of `data.images.resize`: what a crop cut off is 0, and the bars that padding
    added are removed. Between pixels the map is interpolated linearly.

    Args:
      square: Map of the square that the network saw.
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      fit: How the image became a square; see `config.data.fit`.
    """
    size = len(square)
    if (height, width) == (size, size):
        return square
    rows, columns = (
        _weights(side, max(height, width), min(height, width), size, fit)
        for side in (height, width)
    )
    return rows @ square @ columns.T


def _weights(
    side: int, longer: int, shorter: int, size: int, fit: str
) -> Float32[np.ndarray, "{side} {size}"]:
    """Weights of the square's rows in each row of the image, or of the columns in each column."""
    centres = np.arange(side) + 0.5
    if fit == "squash":
        position = centres * size / side
    elif fit == "pad":
        inner = max(1, round(side * size / longer))
        position = (size - inner) // 2 + centres * inner / side
    elif frame := frame_side(fit):
        position = (centres + (frame - side) // 2) * size / frame
    else:
        position = (centres - (side - shorter) / 2) * size / shorter
    below = np.floor(position - 0.5)
    fraction = position - 0.5 - below
    weights = np.zeros((side, size), np.float32)
    rows = np.arange(side)
    for index, weight in ((below, 1 - fraction), (below + 1, fraction)):
        np.add.at(weights, (rows, np.clip(index, 0, size - 1).astype(int)), weight)
    weights[(position < 0) | (position > size)] = 0
    return weights
