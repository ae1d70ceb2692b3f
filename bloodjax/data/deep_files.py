"""Headers of image files with more than 8 bits per value, which Pillow reads with 8 bits."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_GREY_ALPHA, _PNG_RGBA = 4, 6

_SPACE = rb"(?:\s|#[^\n\r]*[\n\r])+"
_PNM = re.compile(rb"P([2356])" + 3 * (_SPACE + rb"(\d{1,9})") + rb"\s")


def png_bits(data: bytes) -> int:
    """Bits per value of a PNG file; 0 for other files."""
    return data[24] if data.startswith(_PNG) and len(data) > 24 else 0


def is_png_grey_alpha(data: bytes) -> bool:
    """Whether a PNG file of 16 bits has grey values and opacity."""
    return png_bits(data) == 16 and data[25] == _PNG_GREY_ALPHA


def png_bytes_as_rgba(data: bytes) -> bytes:
    """A PNG file of grey and opacity of 16 bits, relabelled as RGBA of 8 bits.

    Both have four bytes per pixel, and PNG filters bytes, so red and green are then the upper and
    lower byte of the grey value, blue and alpha those of the opacity.
    """
    header = bytearray(data[12:29])
    header[12], header[13] = 8, _PNG_RGBA
    checksum = struct.pack(">I", zlib.crc32(header))
    return data[:12] + bytes(header) + checksum + data[33:]


def jpeg2000_bits(data: bytes) -> int:
    """Bits per value that a JPEG 2000 file declares for its first channel.

    Raises:
      ValueError: The file has no such header.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 43:
        raise ValueError("JPEG 2000 without a header of its size")
    return (data[start + 42] & 0x7F) + 1


def pnm_values(data: bytes) -> np.ndarray | None:
    """The values of a PGM or PPM file whose largest value may be above 255; None for others.

    Returns:
      uint16 [height, width] or [height, width, 3].

    Raises:
      ValueError: The file is truncated or damaged.
    """
    match = _PNM.match(data)
    if match is None:
        return None
    kind, width, height, limit = map(int, match.groups())
    if not 255 < limit < 2**16:
        return None
    shape = (height, width) if kind in (2, 5) else (height, width, 3)
    count = int(np.prod(shape))
    if kind in (5, 6):
        body = data[match.end() : match.end() + 2 * count]
        if len(body) < 2 * count:
            raise ValueError("image file is truncated")
        values = np.frombuffer(body, ">u2")
    else:
        tokens = re.sub(rb"#[^\n\r]*", b"", data[match.end() :]).split()[:count]
        if len(tokens) < count:
            raise ValueError("image file is truncated")
        values = np.array(tokens).astype(int)
    if values.size and not 0 <= values.min() <= values.max() <= limit:
        raise ValueError(f"values above {limit}, the largest value by the header")
    return values.astype(np.uint16).reshape(shape)
