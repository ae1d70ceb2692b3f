"""Distortions of colour: exposure, camera processing and stain."""

from __future__ import annotations

import numpy as np

from bloodjax.corruptions.base import Image, either, to_uint8

# Optical density in red, green and blue of haematoxylin, eosin and a residual (DAB), one per row:
# Ruifrok and Johnston (2001), Analytical and Quantitative Cytology and Histology 23, 291-299.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def brightness_up(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Multiplies the values by 1.1 .. 1.4."""
    del rng
    return away_from(image, 0, (1.1, 1.2, 1.3, 1.35, 1.4)[severity - 1])


def brightness_down(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Multiplies the values by 0.9 .. 0.5."""
    del rng
    return away_from(image, 0, (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1])


def contrast_up(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Multiplies the distance from the image's mean grey by 1.1 .. 1.3."""
    del rng
    return away_from(image, mean_grey(image), (1.1, 1.15, 1.2, 1.25, 1.3)[severity - 1])


def contrast_down(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Multiplies the distance from the image's mean grey by 0.9 .. 0.5."""
    del rng
    return away_from(image, mean_grey(image), (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1])


def saturate(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 0.05 .. 0.2 to the saturation (HSV), up to 1; greys turn red, because their hue is 0."""
    del rng
    added = (0.05, 0.10, 0.15, 0.17, 0.20)[severity - 1]
    values = image / 255
    value = values.max(axis=2, keepdims=True)
    chroma = value - values.min(axis=2, keepdims=True)
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    # The hue: each channel's distance below the value, as a share of the chroma.
    red = np.broadcast_to([0.0, 1.0, 1.0], values.shape).copy()
    below = np.divide(value - values, chroma, out=red, where=chroma > 0)
    return (value * (1 - np.minimum(saturation + added, 1) * below) * 255).astype(np.uint8)


def gamma(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Raises values in 0..1 to the power of 1.15 .. 2, or of its inverse."""
    exponent = either((1.15, 1.3, 1.5, 1.75, 2.0)[severity - 1], rng)
    return to_uint8(255 * (image / 255) ** exponent)


def white_balance(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Multiplies red by 1.05 .. 1.3 and divides blue by it (a warmer lamp), or the reverse."""
    gain = either((1.05, 1.1, 1.15, 1.2, 1.3)[severity - 1], rng)
    return to_uint8(image * np.array([gain, 1, 1 / gain]))


def overexposure(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds 0.25 .. 1.25 stops of light; the sensor saturates at white."""
    del rng
    light = (image / 255) ** 2.2
    return to_uint8(255 * np.minimum(light * 2 ** (0.25 * severity), 1) ** (1 / 2.2))


def stain_variation(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Scales each stain's amount by up to 10 .. 50 % (Tellez et al. 2018, arXiv:1808.05896)."""
    reach = 0.1 * severity
    density = -np.log10((image + 1.0) / 256)
    amounts = density @ np.linalg.inv(STAINS)
    amounts *= rng.uniform(1 - reach, 1 + reach, 3)
    return to_uint8(256 * 10 ** -(amounts @ STAINS) - 1)


def mean_grey(image: Image) -> int:
    """The mean grey value (ITU-R 601, rounded as in Pillow), rounded."""
    grey = (image @ np.array([19595, 38470, 7471]) + 2**15) >> 16
    return int(grey.mean() + 0.5)


def away_from(image: Image, origin: int, factor: float) -> Image:
    """Multiplies the distance from `origin`; float32, rounded down, as Pillow's `Image.blend`."""
    origin = np.float32(origin)
    moved = origin + np.float32(factor) * (image.astype(np.float32) - origin)
    return np.clip(moved, 0, 255).astype(np.uint8)
