"""Images as arrays of other layouts than uint8 RGB [n, height, width, 3]."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from bloodjax.data import images as images_lib
from bloodjax.data.lazy import LazyImages

# Grey, RGB and RGBA.
CHANNELS = (1, 3, 4)
LAYOUTS = "[n, height, width, channels] or [n, height, width]"

RGB = UInt8[np.ndarray, "n height width 3"]
# What `as_rgb` takes: arrays of NumPy or another library, lists of them, images of Pillow.
ImagesLike = Any


def with_channels(array: np.ndarray) -> Shaped[np.ndarray, "n height width channels"]:
    """Images [n, height, width] or [n, height, width, channels] with the axis of channels.

    Raises:
      ValueError: The array has another shape; the message says what is wrong with it.
    """
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        return array[..., None]
    if array.ndim == 4 and array.shape[-1] in CHANNELS:
        return array
    if array.ndim == 4 and array.shape[1] in CHANNELS:
        raise ValueError("the channels come first")
    raise ValueError(f"not {LAYOUTS}")


def to_rgb(images: UInt8[np.ndarray, "n height width channels"]) -> tuple[RGB, int]:
    """Grey, RGB or RGBA images as RGB; transparent pixels are laid over white.

    Returns:
      The images, and how many of them have transparent pixels.

    Raises:
      ValueError: An image has only transparent pixels.
    """
    if images.shape[-1] == 3:
        return images, 0
    if images.shape[-1] == 1:
        return np.repeat(images, 3, axis=-1), 0
    rgb = np.empty((*images.shape[:-1], 3), np.uint8)
    transparent = 0
    for i, image in enumerate(images):
        try:
            rgb[i], found = images_lib.over_background(image)
        except ValueError as error:
            raise ValueError(f"image {i}: {error}") from error
        transparent += found
    return rgb, transparent


def as_rgb(images: ImagesLike) -> RGB | list[UInt8[np.ndarray, "height width 3"]] | LazyImages:
    """Images that a user has passed, as RGB.

    Args:
      images: A uint8 array of images [n, height, width], or with an axis of 1 (grey), 3 (RGB) or
        4 channels (RGBA) at the end; one image [height, width] or with such an axis; a list of
        images of any sizes; or lazy images.

    Returns:
      uint8 RGB: an array if all images have one size, else a list.

    Raises:
      ValueError: It is something else; the message says what was found and expected.
    """
    if isinstance(images, LazyImages):
        return images
    if isinstance(images, (list, tuple)):
        return [_one(image, f"images[{i}] is") for i, image in enumerate(images)]
    array = _array(images, "images are")
    if array.size == 0 and len(array) == 0:
        return []
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in CHANNELS):
        return _one(array, "images are")[None]
    if array.ndim == 3 and array.shape[0] in (3, 4):
        raise ValueError(
            f"images are {_describe(array)}: {array.shape[0]} grey images, or one with the "
            "channels first; expected [n, height, width, 1], or [height, width, channels]"
        )
    return to_rgb(_checked(array, "images are"))[0]


def resize(images: ImagesLike, size: int, fit: str) -> RGB | LazyImages:
    """The images that `as_rgb` accepts as squares of `size` pixels.

    Raises:
      ValueError: As for `as_rgb`.
    """
    rgb = as_rgb(images)
    if isinstance(rgb, LazyImages):
        return rgb.resized(size)
    if not isinstance(rgb, list):
        return images_lib.resize(rgb, size, fit)
    squares = np.empty((len(rgb), size, size, 3), np.uint8)
    for i, image in enumerate(rgb):
        squares[i] = images_lib.resize(image[None], size, fit)[0]
    return squares


def resize_squares(
    images: ImagesLike, side: int, size: int
) -> RGB | list[UInt8[np.ndarray, "height width 3"]] | LazyImages:
    """The images that `as_rgb` accepts, those of `side` x `side` pixels as squares of `size`.

    Such an image was made a square before, so its frame (`config.data.fit`) is not cut out again.

    Raises:
      ValueError: As for `as_rgb`.
    """
    rgb = as_rgb(images)
    if isinstance(rgb, LazyImages):
        return rgb.resized(size)
    if isinstance(rgb, list):
        return [
            images_lib.resize(one[None], size)[0] if one.shape[:2] == (side, side) else one
            for one in rgb
        ]
    return images_lib.resize(rgb, size) if rgb.shape[1:3] == (side, side) else rgb


def _one(image: object, subject: str) -> UInt8[np.ndarray, "height width 3"]:
    array = _array(image, subject)
    array = array[..., None] if array.ndim == 2 else array
    has_channels = array.ndim == 3 and array.shape[-1] in CHANNELS
    if array.dtype != np.uint8 or not has_channels or array.size == 0:
        raise ValueError(
            f"{subject} {_describe(array)}, expected uint8 [height, width] or [height, width, "
            "channels] with values of 0..255, 1, 3 or 4 channels and at least one pixel"
        )
    try:
        return to_rgb(array[None])[0][0]
    except ValueError as error:  # which calls the only image "image 0"
        raise ValueError(f"{subject} not readable ({error.__cause__})") from error


def _array(images: object, subject: str) -> np.ndarray:
    if isinstance(images, images_lib.PillowImage):
        try:
            return images_lib.from_pillow(images)
        except Exception as error:  # Pillow decodes now, and raises any type on damaged data
            raise ValueError(f"{subject} not readable ({error})") from error
    try:
        return np.asarray(images)
    except Exception as error:  # arrays of other libraries raise any type
        raise ValueError(f"{subject} {type(images).__name__}, expected a uint8 array") from error


def _checked(array: np.ndarray, subject: str) -> UInt8[np.ndarray, "n height width channels"]:
    expected = f"uint8 {LAYOUTS} with values of 0..255 and 1, 3 or 4 channels"
    if array.dtype != np.uint8:
        raise ValueError(f"{subject} {_describe(array)}, expected {expected}")
    try:
        array = with_channels(array)
    except ValueError as error:
        raise ValueError(f"{subject} {_describe(array)}: {error}, expected {expected}") from None
    if array.size == 0:
        raise ValueError(f"{subject} {_describe(array)}, expected at least one pixel")
    return array


def _describe(array: np.ndarray) -> str:
    text = f"{array.dtype} {list(array.shape)}"
    if array.dtype.kind in "iuf" and array.size:
        text += f" with values of {array.min():g}..{array.max():g}"
    return text
