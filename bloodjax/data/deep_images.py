"""Values of images with more than 8 bits per value, which Pillow decodes with 8 or misreads.

The functions take an image that `images` has opened with Pillow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from bloodjax.data import deep_files

# Tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 284, 338, 339
_ALWAYS_8_BITS = ("BMP", "DIB", "GIF", "JPEG", "MPO", "WEBP")


class DeepImage(NamedTuple):
    """An image of more than 8 bits.

    Attributes:
      values: Grey values [height, width] or colours [height, width, 3].
      alpha: Opacity in 0..255, uint8 [height, width], or None.
    """

    values: np.ndarray
    alpha: np.ndarray | None

    def visible(self) -> np.ndarray:
        """`values`, with 0 where the opacity is 0."""
        if self.alpha is None:
            return self.values
        seen = self.alpha > 0
        return np.where(seen if self.values.ndim == 2 else seen[..., None], self.values, 0)


def read(image: Any, data: bytes, reopen: Callable[[bytes], Any]) -> DeepImage | None:
    """The values of an image that has more than 8 bits; None for one of 8 bits.

    Args:
      image: The image as Pillow has opened it.
      data: Its file.
      reopen: Opens the file of an image of this size with Pillow.

    Raises:
      ValueError: The values are of a kind that Pillow misreads, or the file is damaged.
    """
    if image.format in _ALWAYS_8_BITS:
        return None
    is_grey = image.mode.startswith(("I", "F"))
    if image.format == "PPM":
        values = deep_files.pnm_values(data)
        if values is not None:
            return DeepImage(values, None)
    elif image.format == "JPEG2000":
        bits = deep_files.jpeg2000_bits(data)
        if bits > 8 and not is_grey:
            raise ValueError(f"JPEG 2000 colours of {bits} bits, expected 8 bits, or TIFF or PNG")
        if is_grey:  # Pillow scales them to 16 bits
            return DeepImage(np.asarray(image) >> (16 - min(bits, 16)), None)
    elif image.format == "TIFF":
        _check_tiff(image, is_grey)
    if is_grey:
        return _with_transparent_value(np.asarray(image), image)
    if deep_files.is_png_grey_alpha(data):
        pixels = np.asarray(reopen(deep_files.png_bytes_as_rgba(data))).astype(np.uint16)
        image.load()
        return DeepImage(pixels[..., 0] << 8 | pixels[..., 1], pixels[..., 2].astype(np.uint8))
    is_deep_tiff = image.format == "TIFF" and image.tag_v2.get(_BITS, (8,))[0] == 16
    if is_deep_tiff or deep_files.png_bits(data) == 16:
        return _colours(image, data, reopen, is_little=is_deep_tiff and _is_little(image, data))
    return None


def _colours(
    image: Any, data: bytes, reopen: Callable[[bytes], Any], *, is_little: bool
) -> DeepImage:
    """The values of an image of RGB or RGBA of 16 bits, whose byte order is little endian or big.

    Pillow decodes them to their upper bytes. In the other byte order these are the lower bytes.
    """
    upper, lower = (
        _decoded_in_order(reopen(data), order) for order in ("LB" if is_little else "BL")
    )
    values = upper.astype(np.uint16) << 8 | lower
    image.load()
    if image.mode == "RGBA":
        return DeepImage(values[..., :3], upper[..., 3])
    return _with_transparent_value(values, image)


def _is_little(image: Any, data: bytes) -> bool:
    """Whether Pillow decodes a TIFF file from values in little endian."""
    if image.tile[0][0] == "libtiff":  # which has brought them into the machine's order
        return sys.byteorder == "little"
    return data.startswith(b"II")


def _decoded_in_order(image: Any, order: str) -> UInt8[np.ndarray, "height width channels"]:
    """An image of 16-bit colours as Pillow decodes it if its byte order is `order` ("L" or "B")."""

    def reordered(tile: tuple) -> tuple:
        codec, box, offset, args = tile
        mode, *rest = [args] if isinstance(args, str) else args
        mode = f"{mode.partition(';')[0]};16{order}"
        new = mode if isinstance(args, str) else (mode, *rest)
        return tuple.__new__(type(tile), (codec, box, offset, new))

    image.tile = [reordered(tile) for tile in image.tile]
    return np.asarray(image)


def _with_transparent_value(values: np.ndarray, image: Any) -> DeepImage:
    """An image in which a PNG file may declare one grey value or colour to be transparent."""
    value = image.info.get("transparency")
    if value is None:
        return DeepImage(values, None)
    hidden = values == np.asarray(value)
    hidden = hidden.all(-1) if values.ndim == 3 else hidden
    return DeepImage(values, np.where(hidden, 0, 255).astype(np.uint8))


def _check_tiff(image: Any, is_grey: bool) -> None:
    """Refuses a TIFF whose values Pillow would misread."""
    tags = image.tag_v2
    bits = tags.get(_BITS, (1,))[0]
    if is_grey and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError(f"greys of {bits} bits in which 0 is white, expected 0 to be black")
    sample = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if is_grey and sample in (2, 3) and image.tile[0][0] == "libtiff" and tags.prefix == b"MM":
        # libtiff has brought them into the machine's order, and Pillow swaps them once more.
        raise ValueError("compressed signed or float values in big endian, expected little endian")
    if bits == 8 and sample == 2:
        raise ValueError("signed values of 8 bits, expected unsigned ones")
    is_colour_of_16_bits = bits == 16 and not is_grey
    if is_colour_of_16_bits and (
        image.mode not in ("RGB", "RGBA") or tags.get(_EXTRA_SAMPLES) == (1,)
    ):
        raise ValueError("colours of 16 bits that are not RGB or RGBA, expected one of these")
    if is_colour_of_16_bits and tags.get(_PLANAR) == 2 and image.tile[0][0] == "libtiff":
        raise ValueError("colours of 16 bits in compressed planes, expected them pixel by pixel")
