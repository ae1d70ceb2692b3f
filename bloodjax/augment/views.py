"""The views of an image that test-time augmentation averages over.

A view is a function from uint8 images [batch, size, size, 3] to images of the same shape and dtype.
Sets of views are combined with "+": "d4+crops" is every crop of every symmetry. The first view of
each set is the image itself.

  flip, d4  flips; flips and quarter turns (`augment.geometry`)
  crops     the four corners and the centre, 7/8 of the side, resized back bilinearly
  colour    brightness and contrast times 0.9 and 1.1, saturation times 0.8 and 1.2
  robust    corrections of distortions: grey-world white balance (Buchsbaum 1980), auto-contrast,
            Gaussian blur of 1 pixel, unsharp masking with that blur
  zoom      cells of 0.9 and 1.15 times the size
  d4_zoom   d4, its eight views with cells of 1, 1.15 and 0.9 times the size in turn
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from bloodjax.augment import filters, geometry
from bloodjax.augment.zoom import zoom
from bloodjax.errors import UserError

Images = UInt8[Array, "batch size size 3"]
View = Callable[[Images], Images]

IMAGE = "image"
"""Name of the view that is the image itself."""
_CROP = 7 / 8
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_BLUR = 1.0  # Standard deviation in pixels.
_REACH = 3  # Radius of the blur's kernel in pixels.
_UNSHARP = 0.5


def crop(images: Images, down: float, right: float) -> Images:
    """Crops 7/8 of the side and resizes it back; (0, 0) is top left, (1, 1) bottom right."""
    size = images.shape[1]
    side = round(_CROP * size)
    top, left = round(down * (size - side)), round(right * (size - side))
    square = images[:, top : top + side, left : left + side].astype(jnp.float32)
    return _to_bytes(jax.image.resize(square, images.shape, "bilinear"))


def brightness(images: Images, factor: float) -> Images:
    """Multiplies the values by `factor`."""
    return _to_bytes(images.astype(jnp.float32) * factor)


def contrast(images: Images, factor: float) -> Images:
    """Multiplies the distance from the image's mean grey by `factor`."""
    mean = _grey(images).mean(axis=(1, 2, 3), keepdims=True)
    return _to_bytes(mean + factor * (images.astype(jnp.float32) - mean))


def saturation(images: Images, factor: float) -> Images:
    """Multiplies the distance of each pixel from its own grey by `factor`."""
    grey = _grey(images)
    return _to_bytes(grey + factor * (images.astype(jnp.float32) - grey))


def grey_world(images: Images) -> Images:
    """Scales each channel to the mean of all three (Buchsbaum 1980); removes a colour cast."""
    values = images.astype(jnp.float32)
    means = values.mean(axis=(1, 2), keepdims=True)
    return _to_bytes(values * (means.mean(axis=3, keepdims=True) / jnp.maximum(means, 1.0)))


def auto_contrast(images: Images) -> Images:
    """Stretches the image's greys to 0..255; hues, and an image of one grey, do not change."""
    grey = jnp.round(_grey(images))
    low = grey.min(axis=(1, 2, 3), keepdims=True)
    high = grey.max(axis=(1, 2, 3), keepdims=True)
    stretched = (images.astype(jnp.float32) - low) * (255.0 / jnp.maximum(high - low, 1.0))
    return jnp.where(high > low, _to_bytes(stretched), images)


def blur(images: Images) -> Images:
    """Gaussian blur with a standard deviation of 1 pixel; edges are mirrored."""
    return _to_bytes(_blurred(images.astype(jnp.float32)))


def unsharp(images: Images) -> Images:
    """Unsharp masking: adds half of the difference from the blurred image."""
    values = images.astype(jnp.float32)
    return _to_bytes(values + _UNSHARP * (values - _blurred(values)))


def _symmetries(name: str) -> dict[str, View]:
    return {_SYMMETRY[flags]: partial(_symmetry, flags=flags) for flags in geometry.VIEWS[name]}


def _symmetry(images: Images, flags: tuple[bool, bool, bool]) -> Images:
    return geometry.view(images, *flags)


def _identity(images: Images) -> Images:
    return images


def _zooms() -> dict[str, View]:
    return {
        IMAGE: _identity,
        "larger": partial(zoom, factor=1.15),
        "smaller": partial(zoom, factor=0.9),
    }


def _zoomed_symmetries() -> dict[str, View]:
    symmetries, sizes = _symmetries("d4").items(), itertools.cycle(_zooms().items())
    return dict(map(_joined, zip(symmetries, sizes, strict=False)))


def _joined(steps: Sequence[tuple[str, View]]) -> tuple[str, View]:
    """The name of several views one after another, and the view."""
    steps = [(name, function) for name, function in steps if name != IMAGE]
    functions = tuple(function for _, function in steps)
    return "+".join(name for name, _ in steps) or IMAGE, partial(_apply_all, functions=functions)


def _apply_all(images: Images, functions: tuple[View, ...]) -> Images:
    for function in functions:
        images = function(images)
    return images


# (transpose, flip up-down, flip left-right) -> name; degrees are as in `numpy.rot90`.
_SYMMETRY = {
    (False, False, False): IMAGE,
    (False, False, True): "flip_left_right",
    (False, True, False): "flip_up_down",
    (False, True, True): "rotate_180",
    (True, False, False): "transpose",
    (True, False, True): "rotate_270",
    (True, True, False): "rotate_90",
    (True, True, True): "transverse",
}
SETS: dict[str, dict[str, View]] = {
    "none": {IMAGE: _identity},
    "flip": _symmetries("flip"),
    "d4": _symmetries("d4"),
    "crops": {
        IMAGE: _identity,
        "top_left": partial(crop, down=0.0, right=0.0),
        "top_right": partial(crop, down=0.0, right=1.0),
        "bottom_left": partial(crop, down=1.0, right=0.0),
        "bottom_right": partial(crop, down=1.0, right=1.0),
        "centre": partial(crop, down=0.5, right=0.5),
    },
    "colour": {
        IMAGE: _identity,
        "darker": partial(brightness, factor=0.9),
        "brighter": partial(brightness, factor=1.1),
        "less_contrast": partial(contrast, factor=0.9),
        "more_contrast": partial(contrast, factor=1.1),
        "less_saturation": partial(saturation, factor=0.8),
        "more_saturation": partial(saturation, factor=1.2),
    },
    "robust": {
        IMAGE: _identity,
        "grey_world": grey_world,
        "auto_contrast": auto_contrast,
        "blur": blur,
        "unsharp": unsharp,
    },
    "zoom": _zooms(),
    "d4_zoom": _zoomed_symmetries(),
}
# At most one set of each group can be joined with others: they have views in common.
_EXCLUSIVE = ({"flip", "d4", "d4_zoom"}, {"zoom", "d4_zoom"})


def is_known(name: str) -> bool:
    """Whether `name` is a set of views, or several distinct sets joined by "+"."""
    parts = name.split("+")
    distinct = len(set(parts)) == len(parts) and not any(
        len(group.intersection(parts)) > 1 for group in _EXCLUSIVE
    )
    return (
        all(part in SETS for part in parts)
        and distinct
        and (parts == ["none"] or "none" not in parts)
    )


def check(name: str, where: str, also: tuple[str, ...] = ()) -> str:
    """Returns `name` if it is valid.

    Args:
      name: Sets of views, joined by "+".
      where: Flag or argument that contains the name, for the error message.
      also: Other valid values.

    Raises:
      UserError: The name is invalid; the message suggests the closest valid one.
    """
    if name in also or is_known(name):
        return name
    known = (*SETS, *also)
    parts = name.split("+")
    wrong = next((part for part in parts if part not in SETS), "")
    if all(part in SETS for part in parts):
        raise UserError(
            f"{where} is {name!r}, expected {', '.join(known)}, or different sets joined by +, of "
            f"which {' and '.join(dict.fromkeys(parts))} are none"
        )
    near = difflib.get_close_matches(wrong, known, 1, cutoff=0.3) if wrong else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{where} is {name!r}, expected {', '.join(known)}, or different sets joined by +{hint}"
    )


def named(name: str) -> dict[str, View]:
    """The views of the sets `name`, by name; the first is the image itself.

    Raises:
      UserError: A set is unknown.
    """
    parts = check(name, "tta").split("+")
    return dict(map(_joined, itertools.product(*(SETS[part].items() for part in parts))))


def _grey(images: Images) -> Float[Array, "batch size size 1"]:
    luma = jnp.asarray(_LUMA, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) * luma).sum(axis=3, keepdims=True)


def _blurred(values: Float[Array, "batch size size 3"]) -> Float[Array, "batch size size 3"]:
    return jax.vmap(lambda image: filters.gaussian_blur(image, _BLUR, reach=_REACH))(values)


def _to_bytes(values: Float[Array, "batch size size 3"]) -> Images:
    return jnp.clip(jnp.round(values), 0.0, 255.0).astype(jnp.uint8)
