"""Distortions by lamp and lens, and changes of the cell's position, angle and size."""

from __future__ import annotations

import math

import numpy as np
import scipy

from bloodjax.corruptions.base import Image, either, from_centre, to_uint8


def vignette(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Darkens the corners by 15 .. 75 %, with the square of the distance from the centre."""
    del rng
    distance = (from_centre(*image.shape[:2]) ** 2).sum(axis=0) / 2
    return to_uint8(image * (1 - 0.15 * severity * distance)[..., None])


def uneven_illumination(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Brightens one side by 10 .. 50 % and darkens the opposite one, in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = from_centre(*image.shape[:2])
    slope = (y * math.sin(angle) + x * math.cos(angle)) / (
        abs(math.sin(angle)) + abs(math.cos(angle))
    )
    return to_uint8(image * (1 + 0.1 * severity * slope)[..., None])


def chromatic_aberration(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Enlarges red and shrinks blue by 1 .. 5 %, or the reverse."""
    factor = either(1 + 0.01 * severity, rng)
    channels = [_enlarge(image[..., i], factor**k) for i, k in enumerate((1, 0, -1))]
    return to_uint8(np.stack(channels, axis=2))


def rotation(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Rotates by 9 .. 45 degrees in a random direction; 45 is farthest from a quarter turn."""
    angle = math.radians(9 * severity) * rng.choice([-1, 1])
    sine, cosine = math.sin(angle), math.cos(angle)
    return _each_channel(image, np.array([[cosine, sine], [-sine, cosine]]), np.zeros(2))


def shift(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Shifts by 5 .. 25 % of the side in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    offset = 0.05 * severity * min(image.shape[:2]) * np.array([math.sin(angle), math.cos(angle)])
    return _each_channel(image, np.eye(2), offset)


def scale(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Enlarges by 10 .. 50 % or shrinks by the inverse: another magnification or crop."""
    factor = either(1 + 0.1 * severity, rng)
    return _each_channel(image, np.eye(2) / factor, np.zeros(2))


def _each_channel(image: Image, matrix: np.ndarray, offset: np.ndarray) -> Image:
    channels = [_move(image[..., i], matrix, offset) for i in range(3)]
    return to_uint8(np.stack(channels, axis=2))


def _enlarge(channel: np.ndarray, factor: float) -> np.ndarray:
    return _move(channel, np.eye(2) / factor, np.zeros(2))


def _move(channel: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Samples each pixel (y, x) at matrix @ (pixel - centre) + centre + offset.

    Interpolation is linear. The image is mirrored at its edges, because a smear continues there.
    """
    centre = (np.array(channel.shape) - 1) / 2
    start = centre + offset - matrix @ centre
    return scipy.ndimage.affine_transform(
        channel.astype(np.float64), matrix, start, order=1, mode="mirror"
    )
