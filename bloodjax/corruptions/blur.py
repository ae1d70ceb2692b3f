"""Distortions of sharpness: focus, motion and sharpening. Lengths are in pixels."""

from __future__ import annotations

import math

import numpy as np
import scipy

from bloodjax.corruptions.base import Image, to_uint8

_STRAIGHT = 1e-12  # In pixels.


def defocus_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Averages over a disc of radius 2 .. 6 around each pixel."""
    del rng
    return disc_blur(image, severity + 1)


def motion_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Blurs along a fading trail of 7 .. 21 pixels, at an angle of -45 to 45 degrees."""
    radius, sigma = ((3, 3.0), (5, 5.0), (10, 5.0), (10, 7.0), (10, 9.0))[severity - 1]
    return trail_blur(image, radius, sigma, rng.uniform(-45, 45))


def gaussian_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Gaussian blur of standard deviation 0.5 .. 3: a lens of low resolution."""
    del rng
    return to_uint8(_gaussian(image, (0.5, 1.0, 1.5, 2.0, 3.0)[severity - 1]))


def oversharpen(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Unsharp masking (sigma 1, amount 0.5 .. 4): halos of a camera's processing."""
    del rng
    amount = (0.5, 1.0, 2.0, 3.0, 4.0)[severity - 1]
    return to_uint8(image + amount * (image - _gaussian(image, 1.0)))


def disc_blur(image: Image, radius: int) -> Image:
    """Averages over a disc and rounds down; the image is mirrored at its edges.

    The sum is exact: one row of the disc at a time, from cumulative sums along the image's rows.
    The weight is a float32 as in the benchmark, because it decides whether a uniform area keeps
    its value or loses 1 when rounded down.
    """
    height, width = image.shape[:2]
    padded = np.pad(image, ((radius, radius), (radius + 1, radius), (0, 0)), _mirror(image, radius))
    sums = np.cumsum(padded, axis=1, dtype=np.int64)
    total, count = np.zeros(image.shape, np.int64), 0
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        rows = sums[radius + dy : radius + dy + height]
        right, left = radius + half + 1, radius - half
        total += rows[:, right : right + width] - rows[:, left : left + width]
        count += 2 * half + 1
    weight = np.float64(np.float32(1) / np.float32(count))
    return np.minimum(total * weight, 255).astype(np.uint8)


def trail_blur(image: Image, radius: int, sigma: float, angle: float) -> Image:
    """Weights pixels along a line from each pixel by half a Gaussian; edge pixels are repeated.

    Args:
      image: The image.
      radius: The line has 2 * radius + 1 pixels.
      sigma: Standard deviation of the Gaussian along the line, in pixels.
      angle: Angle between the line and the image's rows, in degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = image.shape[:2]
    # Rounds halves down despite rounding errors of sine and cosine.
    x = np.ceil(steps * math.cos(math.radians(angle)) - 0.5 - _STRAIGHT).astype(int)
    y = np.ceil(steps * math.sin(math.radians(angle)) - 0.5 - _STRAIGHT).astype(int)
    reach = 2 * radius + 1
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    total = np.zeros(image.shape)
    for weight, dx, dy in zip(weights, x, y, strict=True):
        top, left = reach + dy, reach + dx
        total += weight * padded[top : top + height, left : left + width]
    # As in the benchmark: rounds to 16 bits, then rounds down to 8.
    return (np.rint(257 * total).astype(np.uint16) // 257).astype(np.uint8)


def _gaussian(image: Image, sigma: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="mirror")


def _mirror(image: Image, radius: int) -> str:
    """The padding mode: a single row or column cannot be mirrored."""
    return "reflect" if min(image.shape[:2]) > 1 else "edge"
