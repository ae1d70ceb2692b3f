"""Sensor noise."""

from __future__ import annotations

import numpy as np

from bloodjax.corruptions.base import Image, to_uint8


def gaussian_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Adds Gaussian noise of standard deviation 0.02 .. 0.12 of the range (electronics)."""
    sigma = (0.02, 0.04, 0.06, 0.08, 0.12)[severity - 1]
    return to_uint8(image + 255 * sigma * rng.standard_normal(image.shape))


def shot_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Poisson noise of low light, with 250 .. 15 photons on average at white."""
    photons = (250, 120, 60, 30, 15)[severity - 1]
    return to_uint8(rng.poisson(image / 255 * photons) * (255 / photons))


def impulse_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Makes 0.5 .. 8 % of the pixels black or white, like defective pixels."""
    share = (0.005, 0.01, 0.02, 0.04, 0.08)[severity - 1]
    uniform = rng.random(image.shape[:2])
    noisy = image.copy()
    noisy[uniform < share] = 255
    noisy[uniform < share / 2] = 0
    return noisy
