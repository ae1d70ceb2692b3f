"""What the lamp and the lens do, and where the cell lies in the image."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from bloodjax.corruptions.base import Image, either, from_centre, to_uint8


def vignette(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Darker by 15 .. 75 % in the corners, as the square of the distance from the centre."""
    del rng
    distance = (from_centre(*image.shape[:2]) ** 2).sum(axis=0) / 2
    return to_uint8(image * (1 - 0.15 * severity * distance)[..., None])


def uneven_illumination(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Brighter by 10 .. 50 % on one side and darker by as much on the other, in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = from_centre(*image.shape[:2])
    slope = (y * math.sin(angle) + x * math.cos(angle)) / (
        abs(math.sin(angle)) + abs(math.cos(angle))
    )
    return to_uint8(image * (1 + 0.1 * severity * slope)[..., None])


def chromatic_aberration(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Red larger and blue smaller by 1 .. 5 %, or the other way round."""
    factor = either(1 + 0.01 * severity, rng)
    channels = [_enlarge(image[..., i], factor**k) for i, k in enumerate((1, 0, -1))]
    return to_uint8(np.stack(channels, axis=2))


def rotation(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Turned by 9 .. 45 degrees, which is as far from a quarter turn as can be, either way."""
    angle = math.radians(9 * severity) * rng.choice([-1, 1])
    sine, cosine = math.sin(angle), math.cos(angle)
    return _each_channel(image, np.array([[cosine, sine], [-sine, cosine]]), np.zeros(2))


def shift(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Off the centre by 5 .. 25 % of the side, in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    way = 0.05 * severity * min(image.shape[:2]) * np.array([math.sin(angle), math.cos(angle)])
    return _each_channel(image, np.eye(2), way)


def scale(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Larger by 10 .. 50 %, or smaller by as much, as of another magnification or crop."""
    factor = either(1 + 0.1 * severity, rng)
    return _each_channel(image, np.eye(2) / factor, np.zeros(2))


def _each_channel(image: Image, matrix: np.ndarray, way: np.ndarray) -> Image:
    channels = [_move(image[..., i], matrix, way) for i in range(3)]
    return to_uint8(np.stack(channels, axis=2))


def _enlarge(channel: np.ndarray, factor: float) -> np.ndarray:
    return _move(channel, np.eye(2) / factor, np.zeros(2))


def _move(channel: np.ndarray, matrix: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Where each pixel (y, x) takes its value from: matrix @ (pixel - centre) + centre + way.

    Linear interpolation; beyond its edges the image is mirrored, as a smear goes on there.
    """
    centre = (np.array(channel.shape) - 1) / 2
    offset = centre + way - matrix @ centre
    return ndimage.affine_transform(
        channel.astype(np.float64), matrix, offset, order=1, mode="mirror"
    )
