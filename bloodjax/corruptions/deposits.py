"""Deposits on the slide or the lens. Lengths are in pixels unless a docstring says otherwise."""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy
from jaxtyping import Bool, Float

from bloodjax.corruptions.base import Image, to_uint8
from bloodjax.data import images

_INK_SHAPES = 10
_MARGIN = 10  # Between ink and the image's edge.
_RIM, _RIM_ALPHA, _BUBBLE_ALPHA = 2, 130, 100


def stain_deposit(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 1, up to 2, or up to 3 black ink spots of 24 pixels across (32 at severity 5)."""
    most = (1, 2, 3, 3, 3)[severity - 1]
    height, width = image.shape[:2]
    shapes = inks(min(32 if severity == 5 else 24, height, width))
    spotted = image.copy()
    for _ in range(_integer(rng, 1, most) if most > 1 else 1):
        ink = shapes[_integer(rng, 0, len(shapes) - 1)]
        left, top = (_random_start(rng, side, len(ink)) for side in (width, height))
        spotted[top : top + len(ink), left : left + len(ink)][ink] = 0
    return spotted


def bubble(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 7 to 10 or 12 half-transparent white bubbles with a rim, of radius 3 to 5 .. 15."""
    largest, most = ((5, 10), (7, 10), (10, 10), (12, 12), (15, 12))[severity - 1]
    height, width = image.shape[:2]
    discs = []
    for _ in range(_integer(rng, 7, most)):
        radius = min(_integer(rng, 3, largest), (min(height, width) - 1) // 2)
        x, y = _integer(rng, radius, width - radius), _integer(rng, radius, height - radius)
        discs += [(x, y, radius + _RIM, _RIM_ALPHA), (x, y, radius, _BUBBLE_ALPHA)]
    alpha = images.draw_discs(height, width, discs)[..., None].astype(np.int64)
    return ((image * (255 - alpha) + 255 * alpha + 127) // 255).astype(np.uint8)


def dust(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 4 .. 20 dark specks, out of focus, with a radius of up to 2 % of the side."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    light = np.ones((height, width))
    for _ in range(4 * severity):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(0.005, 0.02) * min(height, width)
        darkness = rng.uniform(0.3, 0.8)
        light *= 1 - darkness * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))
    return to_uint8(image * light[..., None])


def scratch(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 1 .. 5 bright straight lines across the image, about one pixel wide."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    white = np.zeros((height, width))
    for _ in range(severity):
        angle = rng.uniform(0, math.pi)
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        distance = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        white = np.maximum(white, rng.uniform(0.4, 0.9) * np.exp(-(distance**2)))
    return to_uint8(image + (255.0 - image) * white[..., None])


@functools.cache
def inks(size: int) -> Bool[np.ndarray, "shapes {size} {size}"]:
    """Ten ragged spots, the same in every call; each covers 50 to 75 % of a square of `size`."""
    return np.stack([_spot(size, np.random.default_rng([size, i])) for i in range(_INK_SHAPES)])


def _spot(size: int, rng: np.random.Generator) -> Bool[np.ndarray, "{size} {size}"]:
    """A disc with an edge displaced by smooth noise, covering a random share of the square."""
    axis = np.linspace(-1, 1, size)
    distance = np.hypot(axis[:, None], axis)
    height = 0.25 * _smooth_noise(size, rng) - distance
    return height > np.quantile(height, 1 - rng.uniform(0.5, 0.75))


def _smooth_noise(size: int, rng: np.random.Generator) -> Float[np.ndarray, "{size} {size}"]:
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 12)
    return noise / noise.std()


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """A random integer from low to high inclusive; `low` if `high` is smaller."""
    return int(rng.integers(low, max(low, high) + 1))


def _random_start(rng: np.random.Generator, side: int, length: int) -> int:
    """A random start for `length` of `side` pixels, away from the edges if there is room."""
    free = side - length
    margin = min(_MARGIN, free // 2)
    return _integer(rng, margin, free - margin)
