"""Every distortion by name, in groups, and how an image's own one is drawn.

"all" are the eleven corruptions of BloodMNIST-C (Di Salvo et al. 2024, arXiv:2406.17536) with its
parameters: those for BloodMNIST in the authors' package medmnistc 0.1.0, whose images they equal.
Only the shapes of stain_deposit's spots are other ones, of the same size. Lengths are in pixels
there and here, made for images of 224 x 224; they hit smaller images harder. "extra" are
further kinds, which BloodMNIST-C lacks, so that a model may be trained or chosen on kinds that it
is not tested on; their lengths are shares of the side where a docstring does not say pixels.

Everything random about a distorted image is a function of (seed, image's name, distortion,
severity): no matter in what batches, in what order or when.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping

import numpy as np

from bloodjax.corruptions import blur, colour, compression, deposits, noise, optics
from bloodjax.corruptions.base import SEVERITIES, Distortion, Image
from bloodjax.errors import UserError

BLOODMNIST_C: dict[str, Distortion] = {
    "pixelate": compression.pixelate,
    "jpeg_compression": compression.jpeg_compression,
    "defocus_blur": blur.defocus_blur,
    "motion_blur": blur.motion_blur,
    "brightness_up": colour.brightness_up,
    "brightness_down": colour.brightness_down,
    "contrast_up": colour.contrast_up,
    "contrast_down": colour.contrast_down,
    "saturate": colour.saturate,
    "stain_deposit": deposits.stain_deposit,
    "bubble": deposits.bubble,
}
EXTRA: dict[str, Distortion] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "gaussian_blur": blur.gaussian_blur,
    "oversharpen": blur.oversharpen,
    "gamma": colour.gamma,
    "white_balance": colour.white_balance,
    "overexposure": colour.overexposure,
    "stain_variation": colour.stain_variation,
    "vignette": optics.vignette,
    "uneven_illumination": optics.uneven_illumination,
    "chromatic_aberration": optics.chromatic_aberration,
    "rotation": optics.rotation,
    "shift": optics.shift,
    "scale": optics.scale,
    "webp_compression": compression.webp_compression,
    "low_resolution": compression.low_resolution,
    "posterise": compression.posterise,
    "dust": deposits.dust,
    "scratch": deposits.scratch,
}
DISTORTIONS = BLOODMNIST_C | EXTRA
GROUPS = {
    "all": tuple(BLOODMNIST_C),
    "extra": tuple(EXTRA),
    "everything": tuple(DISTORTIONS),
}
_ITEM = re.compile(r"([\w-]+)(?::([1-5])(?:-([1-5]))?)?")


def parse(text: str, where: str) -> dict[str, tuple[int, ...]]:
    """From "all", "jpeg_compression,bubble:2" or "extra:1-3" to names and their severities.

    Args:
      text: names of distortions or groups, parted by commas; behind each, where it is not all
        five, a severity or a range of them.
      where: the flag or config key that `text` is the value of, for the error.

    Returns:
      The severities of each name, rising; names in the table's order.

    Raises:
      UserError: an item is wrong, a name unknown.
    """
    chosen: dict[str, set[int]] = {}
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        low, high = (int(match[2] or 1), int(match[3] or match[2] or 5)) if match else (1, 0)
        if low > high:
            raise UserError(
                f"{where} holds {item.strip()!r}, expected NAME, NAME:3 or NAME:1-5, severities "
                "from 1 to 5"
            )
        for name in _names(match[1], where):
            chosen.setdefault(name, set()).update(range(low, high + 1))
    return {name: tuple(sorted(chosen[name])) for name in DISTORTIONS if name in chosen}


def distort(image: Image, name: str, severity: int, *, seed: int, image_name: str) -> Image:
    """`image` under the distortion `name`.

    Args:
      image: RGB in 0..255; left as it is.
      name: a key of `DISTORTIONS`.
      severity: 1 to 5.
      seed: with the next, what decides on everything random.
      image_name: the image's name in its data.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}, expected 1 to 5")
    rng = _generator(seed, image_name, name, severity)
    return DISTORTIONS[name](image, severity, rng)


def draw(choice: Mapping[str, tuple[int, ...]], *, seed: int, image_name: str) -> tuple[str, int]:
    """The image's own distortion and severity: any name of `choice`, then any of its severities.

    Args:
      choice: as `parse` returns it.
      seed: see `distort`.
      image_name: see `distort`.
    """
    rng = _generator(seed, image_name)
    names = list(choice)
    name = names[int(rng.integers(len(names)))]
    return name, choice[name][int(rng.integers(len(choice[name])))]


def _names(name: str, where: str) -> tuple[str, ...]:
    if name in DISTORTIONS:
        return (name,)
    if name not in GROUPS:
        near = difflib.get_close_matches(name, [*DISTORTIONS, *GROUPS], 1, cutoff=0)[0]
        raise UserError(f"{where} holds the unknown distortion {name!r}; did you mean {near}?")
    return GROUPS[name]


def _generator(*key: str | int) -> np.random.Generator:
    """A source of random numbers for `key` alone; Python's own hash differs between processes."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
