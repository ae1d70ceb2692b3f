"""The augmentation operations by name, and pools of operations.

A magnitude is between 0 and 1, where 1 is the full range in the operation's description. The sign
of a `signed` operation is random. There are four kinds of operations. They are applied in this
order, regardless of the order in the policy:

- "table": maps the values of single channels; composed into one lookup table (`colour`);
- "affine": moves pixels; composed into one map, by which the image is resampled once (`affine`);
- "matrix": mixes channels; composed into one 3x3 matrix (`colour`);
- "effect": all others, applied one after another in the order of `EFFECTS`, each at most once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bloodjax.augment import affine, colour, deposits, erase, filters, stain


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
      kind: "table", "affine", "matrix" or "effect".
      make: From a `Setting` to a new table, a map, a matrix, or an effect's parameters, by kind.
      full: Description of magnitude 1.
      signed: Whether the magnitude's sign is random.
      needs_counts: Whether the operation uses the image's histogram.
    """

    kind: str
    make: Callable[[Setting], Any]
    full: str
    signed: bool = False
    needs_counts: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs of `Op.make`, for one image.

    Attributes:
      amount: Magnitude with its sign.
      key: Random key for further random numbers.
      size: (height, width) of the image.
      table: Lookup table so far.
      counted: Histogram of the image after `table`, or None if no operation needs it.
    """

    amount: jax.Array
    key: jax.Array
    size: tuple[int, int]
    table: jax.Array
    counted: jax.Array | None

    def uniform(
        self, low: int | float, high: int | float, shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Random numbers, uniform between `low` and `high`."""
        return jax.random.uniform(self.key, shape, jnp.float32, float(low), float(high))

    def either_way(self, shape: tuple[int, ...]) -> jax.Array:
        """Random numbers, uniform between -`amount` and `amount`."""
        return self.amount * self.uniform(-1, 1, shape)


def _zoom(s: Setting):
    factor = 1.5**s.amount
    return affine.scaling(factor, factor)


def _scale(s: Setting):
    factor = 2.0**s.amount
    return affine.scaling(factor, factor)


def _frame(s: Setting):
    """Frames the cell as a detector does: tight or wide, off its centre, not square.

    The frame's size is 1.6 ** -1 .. 1.6 times the image's, the ratio of its sides up to 1.25, and
    its centre is up to 0.15 of the image's side from the image's, in each direction. Unlike
    `_crop`, which is meant to leave out most of an object (Szegedy et al., 2015, arXiv:1409.4842),
    it keeps the cell.
    """
    side, aspect, down, right = s.either_way((4,))
    side, aspect = 1.6**side, 1.25 ** (aspect / 2)
    offset = 0.15 * jnp.stack([down, right]) * jnp.array(s.size, jnp.float32)
    return affine.scaling(1 / (side * aspect), aspect / side).at[:, 2].set(offset)


def _stretch(s: Setting):
    factor = 1.5 ** (s.amount / 2)
    return affine.scaling(factor, 1 / factor)


def _crop(s: Setting):
    """Crops a random share of the area with a random aspect, and enlarges it to the full size."""
    area, shape, down, right = s.uniform(0, 1, (4,))
    part = jnp.sqrt(1 - 0.92 * s.amount * area)
    stretch = jnp.exp(s.amount * (2 * shape - 1) * 0.5 * jnp.log(4 / 3))
    sides = jnp.minimum(jnp.stack([part / stretch, part * stretch]), 1.0)
    room = (1 - sides) * jnp.array(s.size, jnp.float32)
    offset = (jnp.stack([down, right]) - 0.5) * room
    return affine.scaling(1 / sides[0], 1 / sides[1]).at[:, 2].set(offset)


def _shuffle(s: Setting):
    return colour.permutation(jax.random.permutation(s.key, 3))


def _temperature(s: Setting):
    gains = jnp.stack([1 + 0.3 * s.amount, jnp.ones(()), 1 - 0.3 * s.amount])
    return colour.brightness(s.table, gains[None])


def _white_balance(s: Setting):
    """Gains of the camera's channels: constant shifts of the three optical densities."""
    return colour.brightness(s.table, 0.7 ** s.either_way((3,))[None])


def _translate(axis: int):
    def make(s: Setting):
        pixels = 0.45 * s.amount * s.size[axis]
        zero = jnp.zeros(())
        return affine.translation(*((pixels, zero) if axis == 0 else (zero, pixels)))

    return make


def _stain(s: Setting):
    scale, shift = s.either_way((2, 3))
    return 1 + 0.4 * scale, 0.1 * shift


def _smear(s: Setting):
    """`stain.smear` with random arguments.

    Amounts change together by a factor of 0.3 to 1.65, since laboratories differ most in contrast,
    and each by 0.67 to 1.5 besides. The background becomes darker or brighter in all channels, by
    -0.1 to 0.2 decades, and takes up to 0.06 more or less of each stain. Vectors are turned by up
    to 15 degrees.
    """
    random = s.either_way((12,))
    scale = jnp.exp(0.85 * random[0] - 0.35 * s.amount + 0.4 * random[1:4])
    grey = stain.SMEAR_FROM_RGB.sum(0) * (0.15 * random[4] + 0.05 * s.amount)
    shift = grey + 0.06 * random[5:8]
    return stain.smear(scale, shift, jnp.tan(_TURNED * random[8:].reshape(2, 2)))


def _random_conv(s: Setting):
    return filters.random_kernel(s.key), s.amount


def _erase(s: Setting):
    box_key, fill_key = jax.random.split(s.key)
    area = (0.02, 0.02 + 0.31 * s.amount)
    return erase.random_box(box_key, s.size, area, (0.3, 1 / 0.3)), fill_key


def _cutout(s: Setting):
    return erase.cutout_box(s.key, s.size, 0.5 * s.amount * min(s.size))


# Largest angle between the vector of a stain and that of another laboratory's, in radians.
_TURNED = math.radians(15)

OPS: dict[str, Op] = {
    "identity": Op("affine", lambda s: affine.identity(), "nothing"),
    "rotate": Op("affine", lambda s: affine.rotation(30 * s.amount), "30 degrees", signed=True),
    "turn": Op("affine", lambda s: affine.rotation(180 * s.amount), "half a turn", signed=True),
    "shear_x": Op(
        "affine",
        lambda s: affine.linear((1.0, 0.0), (0.3 * s.amount, 1.0)),
        "columns move by 0.3 of the row",
        signed=True,
    ),
    "shear_y": Op(
        "affine",
        lambda s: affine.linear((1.0, 0.3 * s.amount), (0.0, 1.0)),
        "rows move by 0.3 of the column",
        signed=True,
    ),
    "scale": Op("affine", _scale, "twice or half the size", signed=True),
    "frame": Op(
        "affine",
        _frame,
        "0.62 to 1.6 times the field of view, sides up to 1.25 : 1, 0.15 of the side off centre",
    ),
    "translate_x": Op("affine", _translate(1), "0.45 of the width", signed=True),
    "translate_y": Op("affine", _translate(0), "0.45 of the height", signed=True),
    "zoom": Op("affine", _zoom, "1.5 times as large or as small", signed=True),
    "stretch": Op("affine", _stretch, "sides in a proportion of 1.5", signed=True),
    "crop": Op("affine", _crop, "0.08 to 1 of the area, sides up to 4 : 3 (Inception's crop)"),
    "brightness": Op(
        "table",
        lambda s: colour.brightness(s.table, 1 + 0.9 * s.amount),
        "factor 0.1 or 1.9",
        signed=True,
    ),
    "contrast": Op(
        "table",
        lambda s: colour.contrast(s.table, s.counted, 1 + 0.9 * s.amount),
        "factor 0.1 or 1.9",
        signed=True,
        needs_counts=True,
    ),
    "gamma": Op(
        "table", lambda s: colour.gamma(s.table, 2.5**s.amount), "exponent 0.4 or 2.5", signed=True
    ),
    "temperature": Op(
        "table", _temperature, "red times 1.3 and blue times 0.7, or the reverse", signed=True
    ),
    "white_balance": Op(
        "table", _white_balance, "red, green and blue times 0.7 to 1.43, each by its own"
    ),
    "channel_shift": Op(
        "table",
        lambda s: colour.shift(s.table, 64 * s.either_way((3,))),
        "up to 64 grey levels, each channel by its own",
    ),
    "solarize": Op(
        "table",
        lambda s: colour.solarize(s.table, 256 * (1 - s.amount)),
        "all values inverted; at 0.5 those from 128 on",
    ),
    "posterize": Op(
        "table",
        lambda s: colour.posterize(s.table, 8 - jnp.round(4 * s.amount)),
        "4 bits left of each value",
    ),
    "invert": Op("table", lambda s: 255 - s.table, "always full strength"),
    "autocontrast": Op(
        "table",
        lambda s: colour.autocontrast(s.table, s.counted),
        "always full strength",
        needs_counts=True,
    ),
    "equalize": Op(
        "table",
        lambda s: colour.equalize(s.table, s.counted),
        "always full strength",
        needs_counts=True,
    ),
    "saturation": Op(
        "matrix",
        lambda s: colour.saturation(1 + 0.9 * s.amount),
        "factor 0.1 or 1.9",
        signed=True,
    ),
    "hue": Op("matrix", lambda s: colour.hue(0.25 * s.amount), "a quarter turn", signed=True),
    "grey": Op("matrix", lambda s: colour.saturation(1 - s.amount), "no colour left"),
    "channel_shuffle": Op("matrix", _shuffle, "always full strength"),
    "stain": Op(
        "effect",
        _stain,
        "amounts of haematoxylin, eosin and residual times 0.6 to 1.4, plus or minus 0.1 decades",
    ),
    "smear": Op(
        "effect",
        _smear,
        "amounts of azure, eosin and residual times 0.2 to 2.5, the background brighter by 0.1 or "
        "darker by 0.2 decades and tinted, the hues of azure and eosin turned by 15 degrees",
    ),
    "random_conv": Op("effect", _random_conv, "a random filter of 1 or 3 pixels alone"),
    "defocus": Op("effect", lambda s: 2.5 * s.amount, "a disk of 2.5 pixels' radius"),
    "blur": Op("effect", lambda s: 1.5 * s.amount, "a Gaussian of 1.5 pixels' deviation"),
    "motion_blur": Op(
        "effect",
        lambda s: (1 + 6 * s.amount, s.uniform(0, 180)),
        "a way of 7 pixels in any direction",
    ),
    "sharpness": Op("effect", lambda s: 1 + 0.9 * s.amount, "factor 0.1 or 1.9", signed=True),
    "pixelate": Op("effect", lambda s: 1 - 0.65 * s.amount, "0.35 of the resolution"),
    "shot_noise": Op(
        "effect", lambda s: (s.key, 30 * s.amount), "deviation of 30 grey levels where white"
    ),
    "noise": Op("effect", lambda s: (s.key, 30 * s.amount), "deviation of 30 grey levels"),
    "impulse_noise": Op(
        "effect", lambda s: (s.key, 0.08 * s.amount), "0.08 of the pixels black or white"
    ),
    "jpeg": Op("effect", lambda s: 95 - 85 * s.amount, "quality 10, from 95"),
    "vignette": Op("effect", lambda s: 0.8 * s.amount, "corners darkened to 0.2"),
    "deposits": Op(
        "effect",
        lambda s: deposits.random_spots(s.key, s.size, s.amount),
        "1 to 8 spots of a colour, 0.3 to 1 opaque, of a radius of up to 0.2 of the side",
    ),
    "grid_mask": Op(
        "effect",
        lambda s: (0.5 * s.amount, s.uniform(0, 1, (4,))),
        "grey squares over a quarter of the area, on a random grid",
    ),
    "cutout": Op("effect", _cutout, "a grey square of half the side, anywhere"),
    "erase": Op("effect", _erase, "noise over 0.02 to 0.33 of the area (Zhong et al., 2020)"),
}


def _grid_mask(x, params):
    ratio, (period, row, column, angle) = params
    pixels = (0.2 + 0.3 * period) * x.shape[0]
    offset = pixels * jnp.stack([row, column])
    return erase.grid_mask(x, pixels, ratio, offset, 90 * angle, jnp.full(3, filters.GREY))


def _noise_in_box(x, params):
    box, key = params
    return erase.erase(x, box, filters.random_levels(key, x.shape[:2], 8))


# Effect -> function of an image and of the parameters from `Op.make`, in order of application.
EFFECTS: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "smear": lambda x, params: stain.change_density(x, *params),
    "stain": lambda x, params: stain.stain_jitter(x, *params),
    "deposits": deposits.cover,
    "random_conv": lambda x, params: filters.random_conv(x, *params),
    "vignette": filters.vignette,
    "defocus": filters.defocus,
    "blur": filters.gaussian_blur,
    "motion_blur": lambda x, params: filters.motion_blur(x, *params),
    "sharpness": filters.sharpness,
    "pixelate": filters.pixelate,
    "shot_noise": lambda x, params: filters.shot_noise(x, *params),
    "noise": lambda x, params: filters.noise(x, *params),
    "impulse_noise": lambda x, params: filters.impulse_noise(x, *params),
    "jpeg": filters.jpeg,
    "grid_mask": _grid_mask,
    "cutout": lambda x, box: erase.erase(x, box, jnp.full(3, filters.GREY)),
    "erase": _noise_in_box,
}

_LATER = (
    *("scale", "frame", "white_balance", "smear", "random_conv"),
    *("impulse_noise", "deposits"),
)

POOLS: dict[str, tuple[str, ...]] = {
    # The fourteen operations of RandAugment (Cubuk et al., 2020).
    "standard": (
        *("identity", "autocontrast", "equalize", "rotate", "solarize", "saturation", "posterize"),
        *("contrast", "brightness", "sharpness"),
        *("shear_x", "shear_y", "translate_x", "translate_y"),
    ),
    # Variations between microscopes, cameras, stains and file formats.
    "microscope": (
        *("identity", "turn", "zoom", "stretch", "translate_x", "translate_y"),
        *("brightness", "contrast", "gamma", "temperature", "channel_shift", "saturation", "hue"),
        *("stain", "defocus", "blur", "motion_blur", "sharpness", "pixelate", "shot_noise"),
        *("noise", "jpeg", "vignette", "posterize"),
    ),
    # Variations between laboratories: stain and background, camera, framing, optics and files.
    "laboratory": (
        *("identity", "turn", "scale", "frame", "stretch", "white_balance", "gamma"),
        *("brightness", "contrast", "saturation", "hue", "smear", "defocus", "blur"),
        *("motion_blur", "sharpness", "pixelate", "shot_noise", "noise", "jpeg", "vignette"),
    ),
    # Without later operations, so that a policy draws the random numbers that it always drew.
    "all": tuple(name for name in OPS if name not in _LATER),
}
