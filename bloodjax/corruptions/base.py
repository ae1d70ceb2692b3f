"""The type of a distortion, and functions that several distortions share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

SEVERITIES = (1, 2, 3, 4, 5)

Image = UInt8[np.ndarray, "height width 3"]
# (image, severity 1..5, random number generator) -> a new image of the same size.
Distortion = Callable[[Image, int, np.random.Generator], Image]


def to_uint8(values: Float[np.ndarray, "height width 3"]) -> Image:
    """Rounds to integers and clips to 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def either(value: float, rng: np.random.Generator) -> float:
    """`value` or its inverse, with equal probability."""
    return value if rng.integers(2) else 1 / value


def from_centre(height: int, width: int) -> Float[np.ndarray, "2 {height} {width}"]:
    """(y, x) of each pixel relative to the image's centre; the edges are at -1 and 1."""
    y, x = (np.arange(n) * 2 + 1 - n for n in (height, width))
    return np.stack(np.meshgrid(y / height, x / width, indexing="ij"))
