"""Distortions by file formats and low resolution."""

from __future__ import annotations

import numpy as np

from bloodjax.corruptions.base import Image
from bloodjax.data import images


def pixelate(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Shrinks the side to 0.6 .. 0.25 and enlarges it again, both with a box filter."""
    del rng
    return images.shrink_and_enlarge(image, (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1], "box")


def jpeg_compression(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Encodes and decodes as JPEG of quality 50 .. 7."""
    del rng
    return images.reencode(image, "JPEG", (50, 30, 15, 10, 7)[severity - 1])


def webp_compression(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Encodes and decodes as lossy WebP of quality 40 .. 1."""
    del rng
    return images.reencode(image, "WEBP", (40, 20, 10, 5, 1)[severity - 1])


def low_resolution(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Shrinks the side to 0.7 .. 0.2 and enlarges it again, both bicubically."""
    del rng
    return images.shrink_and_enlarge(image, (0.7, 0.5, 0.4, 0.3, 0.2)[severity - 1], "bicubic")


def posterize(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Reduces each channel to 6 .. 2 bits, spread over 0..255."""
    del rng
    levels = 2 ** (7 - severity)
    step = 255 / (levels - 1)
    lookup = np.rint(np.arange(256) * levels // 256 * step).astype(np.uint8)
    return lookup[image]
