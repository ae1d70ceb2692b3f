"""What a sensor adds."""

from __future__ import annotations

import numpy as np

from bloodjax.corruptions.base import Image, to_uint8


def gaussian_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Noise of the electronics: normal, of standard deviation 0.02 .. 0.12 of the range."""
    sigma = (0.02, 0.04, 0.06, 0.08, 0.12)[severity - 1]
    return to_uint8(image + 255 * sigma * rng.standard_normal(image.shape))


def shot_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Too little light: white is 250 .. 15 photons on average, their number Poisson's."""
    photons = (250, 120, 60, 30, 15)[severity - 1]
    return to_uint8(rng.poisson(image / 255 * photons) * (255 / photons))


def impulse_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """0.5 .. 8 % of the pixels black or white, as of defective ones."""
    share = (0.005, 0.01, 0.02, 0.04, 0.08)[severity - 1]
    draw = rng.random(image.shape[:2])
    noisy = image.copy()
    noisy[draw < share] = 255
    noisy[draw < share / 2] = 0
    return noisy
