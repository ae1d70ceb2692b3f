"""The fixed views of an image that test-time augmentation averages over.

Each is a function of uint8 images [batch, size, size, 3] to as many of the same form. Sets of
views are joined by "+": "d4+crops" is every crop of every symmetry. The first view of every set is
the image itself.

  flip, d4  flips; flips and quarter turns (`augment.geometry`)
  crops     the four corners and the centre, 7/8 of the side, resized back by bilinear weights
  colour    brightness and contrast times 0.9 and 1.1, saturation times 0.8 and 1.2
  robust    what undoes or evens out a distortion: grey-world white balance (Buchsbaum 1980),
            auto-contrast, a Gaussian blur of 1 pixel, an unsharp mask with it
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from bloodjax.augment import filters, geometry
from bloodjax.errors import UserError

Images = UInt8[Array, "batch size size 3"]
View = Callable[[Images], Images]

PICTURE = "picture"
_CROP = 7 / 8
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_BLUR = 1.0  # pixels
_REACH = 3  # of the blur's kernel, in pixels
_UNSHARP = 0.5


def crop(images: Images, down: float, right: float) -> Images:
    """7/8 of the side, resized to the whole; (0, 0) is top left, (1, 1) bottom right."""
    size = images.shape[1]
    side = round(_CROP * size)
    top, left = round(down * (size - side)), round(right * (size - side))
    square = images[:, top : top + side, left : left + side].astype(jnp.float32)
    return _to_bytes(jax.image.resize(square, images.shape, "bilinear"))


def brightness(images: Images, factor: float) -> Images:
    """Every value times `factor`."""
    return _to_bytes(images.astype(jnp.float32) * factor)


def contrast(images: Images, factor: float) -> Images:
    """The distance from the image's mean grey times `factor`."""
    mean = _grey(images).mean(axis=(1, 2, 3), keepdims=True)
    return _to_bytes(mean + factor * (images.astype(jnp.float32) - mean))


def saturation(images: Images, factor: float) -> Images:
    """The distance of each pixel from its own grey times `factor`."""
    grey = _grey(images)
    return _to_bytes(grey + factor * (images.astype(jnp.float32) - grey))


def grey_world(images: Images) -> Images:
    """Each channel scaled to the mean of all three (Buchsbaum 1980): a tinted light taken away."""
    values = images.astype(jnp.float32)
    means = values.mean(axis=(1, 2), keepdims=True)
    return _to_bytes(values * (means.mean(axis=3, keepdims=True) / jnp.maximum(means, 1.0)))


def auto_contrast(images: Images) -> Images:
    """The image's darkest grey becomes 0 and its brightest 255; hues stay, as does a flat one."""
    grey = jnp.round(_grey(images))
    low = grey.min(axis=(1, 2, 3), keepdims=True)
    high = grey.max(axis=(1, 2, 3), keepdims=True)
    stretched = (images.astype(jnp.float32) - low) * (255.0 / jnp.maximum(high - low, 1.0))
    return jnp.where(high > low, _to_bytes(stretched), images)


def blur(images: Images) -> Images:
    """A Gaussian blur with a standard deviation of 1 pixel; edges are mirrored."""
    return _to_bytes(_blurred(images.astype(jnp.float32)))


def unsharp(images: Images) -> Images:
    """The image plus half of what the blur takes away."""
    values = images.astype(jnp.float32)
    return _to_bytes(values + _UNSHARP * (values - _blurred(values)))


def _symmetries(name: str) -> dict[str, View]:
    return {_SYMMETRY[flags]: partial(_symmetry, flags=flags) for flags in geometry.VIEWS[name]}


def _symmetry(images: Images, flags: tuple[bool, bool, bool]) -> Images:
    return geometry.view(images, *flags)


def _image(images: Images) -> Images:
    return images


# Flips and turns by (transpose, flip up-down, flip left-right); degrees as in `numpy.rot90`.
_SYMMETRY = {
    (False, False, False): PICTURE,
    (False, False, True): "flip_left_right",
    (False, True, False): "flip_up_down",
    (False, True, True): "rotate_180",
    (True, False, False): "transpose",
    (True, False, True): "rotate_270",
    (True, True, False): "rotate_90",
    (True, True, True): "transverse",
}
SETS: dict[str, dict[str, View]] = {
    "none": {PICTURE: _image},
    "flip": _symmetries("flip"),
    "d4": _symmetries("d4"),
    "crops": {
        PICTURE: _image,
        "top_left": partial(crop, down=0.0, right=0.0),
        "top_right": partial(crop, down=0.0, right=1.0),
        "bottom_left": partial(crop, down=1.0, right=0.0),
        "bottom_right": partial(crop, down=1.0, right=1.0),
        "centre": partial(crop, down=0.5, right=0.5),
    },
    "colour": {
        PICTURE: _image,
        "darker": partial(brightness, factor=0.9),
        "brighter": partial(brightness, factor=1.1),
        "less_contrast": partial(contrast, factor=0.9),
        "more_contrast": partial(contrast, factor=1.1),
        "less_saturation": partial(saturation, factor=0.8),
        "more_saturation": partial(saturation, factor=1.2),
    },
    "robust": {
        PICTURE: _image,
        "grey_world": grey_world,
        "auto_contrast": auto_contrast,
        "blur": blur,
        "unsharp": unsharp,
    },
}


def is_known(name: str) -> bool:
    """Whether `name` is a set of views, or several different ones joined by "+"."""
    parts = name.split("+")
    distinct = len(set(parts)) == len(parts) and not {"flip", "d4"} <= set(parts)
    return (
        all(part in SETS for part in parts)
        and distinct
        and (parts == ["none"] or "none" not in parts)
    )


def check(name: str, where: str, also: tuple[str, ...] = ()) -> str:
    """`name`, where it is known or one of `also`.

    Args:
      name: of sets of views.
      where: the flag or argument that it stands in.
      also: other words that may stand there.

    Raises:
      UserError: it is neither; the message has the nearest that is.
    """
    if name in also or is_known(name):
        return name
    known = (*SETS, *also)
    wrong = next((part for part in name.split("+") if part not in SETS), "")
    near = difflib.get_close_matches(wrong, known, 1, cutoff=0.3) if wrong else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{where} is {name!r}, expected {', '.join(known)}, or different sets joined by +{hint}"
    )


def named(name: str) -> dict[str, View]:
    """The views of the sets in `name`, by name and in order, the image itself first.

    Raises:
      UserError: a set is unknown.
    """
    parts = check(name, "tta").split("+")
    found = {}
    for steps in itertools.product(*(SETS[part].items() for part in parts)):
        moved = [(step, function) for step, function in steps if step != PICTURE]
        found["+".join(step for step, _ in moved) or PICTURE] = partial(
            _in_turn, functions=tuple(function for _, function in moved)
        )
    return found


def _in_turn(images: Images, functions: tuple[View, ...]) -> Images:
    for function in functions:
        images = function(images)
    return images


def _grey(images: Images) -> Float[Array, "batch size size 1"]:
    luma = jnp.asarray(_LUMA, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) * luma).sum(axis=3, keepdims=True)


def _blurred(values: Float[Array, "batch size size 3"]) -> Float[Array, "batch size size 3"]:
    return jax.vmap(lambda picture: filters.gaussian_blur(picture, _BLUR, reach=_REACH))(values)


def _to_bytes(values: Float[Array, "batch size size 3"]) -> Images:
    return jnp.clip(jnp.round(values), 0.0, 255.0).astype(jnp.uint8)
