"""What file formats and too few pixels do."""

from __future__ import annotations

import numpy as np

from bloodjax.corruptions.base import Image
from bloodjax.data import images


def pixelate(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Averaged over blocks: shrunk to 0.6 .. 0.25 of the side and enlarged, both with a box."""
    del rng
    return images.shrink_and_enlarge(image, (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1], "box")


def jpeg_compression(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Through a JPEG file of quality 50 .. 7."""
    del rng
    return images.reencode(image, "JPEG", (50, 30, 15, 10, 7)[severity - 1])


def webp_compression(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Through a lossy WebP file of quality 40 .. 1."""
    del rng
    return images.reencode(image, "WEBP", (40, 20, 10, 5, 1)[severity - 1])


def low_resolution(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """As from a camera of fewer pixels: 0.7 .. 0.2 of the side, and enlarged bicubically."""
    del rng
    return images.shrink_and_enlarge(image, (0.7, 0.5, 0.4, 0.3, 0.2)[severity - 1], "bicubic")


def posterise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """6 .. 2 bits a channel, spread over 0..255 again."""
    del rng
    levels = 2 ** (7 - severity)
    step = 255 / (levels - 1)
    lookup = np.rint(np.arange(256) * levels // 256 * step).astype(np.uint8)
    return lookup[image]
