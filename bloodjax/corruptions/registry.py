"""All distortions by name, in groups, and the random choice of one per image.

The group "all" has the eleven corruptions of BloodMNIST-C (Di Salvo et al. 2024, arXiv:2406.17536).
Parameters and resulting images are those for BloodMNIST in the authors' package medmnistc 0.1.0,
except for the shapes of the spots of `stain_deposit`. Lengths are in pixels and made for images of
224 x 224, so the corruptions are stronger for smaller images.

The group "extra" has distortions that are not in BloodMNIST-C, so that a model can be trained or
selected on distortions that it is not tested on. Their lengths are shares of the side unless a
docstring says pixels.

The random numbers of a distorted image are a function of (seed, image name, distortion, severity).
They do not depend on the batch or on the order of images.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import numpy as np

from bloodjax.corruptions import blur, colour, compression, deposits, noise, optics
from bloodjax.corruptions.base import SEVERITIES, Distortion, Image
from bloodjax.errors import UserError, did_you_mean

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
    "posterize": compression.posterize,
    "dust": deposits.dust,
    "scratch": deposits.scratch,
}
DISTORTIONS = BLOODMNIST_C | EXTRA
GROUPS = {
    "all": tuple(BLOODMNIST_C),
    "extra": tuple(EXTRA),
    "everything": tuple(DISTORTIONS),
}
# Former name -> name.
_ALIASES = {"posterise": "posterize"}
_ITEM = re.compile(r"([\w-]+)(?::([1-5])(?:-([1-5]))?)?")


def parse(text: str, where: str) -> dict[str, tuple[int, ...]]:
    """Parses a choice such as "all", "jpeg_compression,bubble:2" or "extra:1-3".

    Args:
      text: Comma-separated names of distortions or groups. Each may be followed by a colon and a
        severity or a range of severities; the default is all five.
      where: Flag or config key that contains `text`, for the error message.

    Returns:
      Distortion -> severities in ascending order; distortions in the order of `DISTORTIONS`.

    Raises:
      UserError: An item is malformed, or a name is unknown.
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
    """Returns a distorted copy of `image`.

    Args:
      image: RGB image in 0..255.
      name: A key of `DISTORTIONS`.
      severity: 1 to 5.
      seed: Seed of the random numbers.
      image_name: Name of the image in its dataset, which the random numbers depend on too.

    Raises:
      ValueError: The severity is not in 1..5.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}, expected 1 to 5")
    rng = _generator(seed, image_name, name, severity)
    return DISTORTIONS[name](image, severity, rng)


def sample(choice: Mapping[str, tuple[int, ...]], *, seed: int, image_name: str) -> tuple[str, int]:
    """Samples a distortion and then a severity for one image, both uniformly.

    Args:
      choice: Distortion -> severities, as `parse` returns it.
      seed: See `distort`.
      image_name: See `distort`.
    """
    rng = _generator(seed, image_name)
    names = list(choice)
    name = names[int(rng.integers(len(names)))]
    return name, choice[name][int(rng.integers(len(choice[name])))]


def _names(name: str, where: str) -> tuple[str, ...]:
    name = _ALIASES.get(name, name)
    if name in DISTORTIONS:
        return (name,)
    if name not in GROUPS:
        hint = did_you_mean(name.lower(), [*DISTORTIONS, *GROUPS])
        raise UserError(f"{where} holds the unknown distortion {name!r}; {hint}")
    return GROUPS[name]


def _generator(*key: str | int) -> np.random.Generator:
    """A generator seeded by `key`. Python's hash would differ between processes."""
    text = "\0".join(map(str, key))
    # A file's name that is not UTF-8 has surrogates.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
