"""Which value becomes 255, for images whose values have more than 8 bits or are floats.

Cameras store 10, 12 or 14 bits in files of 16. The images of a source are scaled alike, by the
largest value in any of them. A scale is a text: the number of bits ("12": value // 16), or `UNIT`
for floats of 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

UNIT = "0..1"
# Scales by number of bits, in ascending order.
BITS = ("8", "10", "12", "14", "16")

_INTEGERS = f"integers of 0..{2**16 - 1}"
# Floats of 0..1 whose largest value is below this one lose two bits or more.
_SMALLEST_UNIT = 0.25
# Floats above 1 and below this one are of no scale that cameras and programs use.
_SMALLEST_FRACTIONS = 128


class Range(NamedTuple):
    """The values of one image, or of several.

    Attributes:
      largest: Largest value.
      is_float: Whether the values are stored as floats.
      has_fractions: Whether some are not integers.
    """

    largest: float
    is_float: bool
    has_fractions: bool


def measure(values: np.ndarray) -> Range:
    """The range of an image's values, which must not be of type uint8.

    Raises:
      ValueError: Values are negative, not finite or above 65535, or of no numeric type.
    """
    if values.dtype.kind not in "iuf":
        raise ValueError(f"values of type {values.dtype}, expected {_INTEGERS} or floats of 0..1")
    smallest, largest = float(values.min()), float(values.max())
    if not np.isfinite(smallest) or not np.isfinite(largest):
        raise ValueError(f"values that are not finite, expected {_INTEGERS} or floats of 0..1")
    if smallest < 0 or largest > 2**16 - 1:
        found = f"values of {smallest:g}..{largest:g}"
        raise ValueError(f"{found}, expected {_INTEGERS} or floats of 0..1")
    is_float = values.dtype.kind == "f"
    return Range(largest, is_float, is_float and bool((values != np.rint(values)).any()))


def choose(ranges: Sequence[Range]) -> str:
    """The scale of images with these ranges, at least one, by the largest value in any of them.

    Raises:
      ValueError: The values do not show their scale.
    """
    floats = [one for one in ranges if one.is_float]
    largest = max(one.largest for one in ranges)
    fractions = any(one.has_fractions for one in ranges)
    # Floats of 0 and 1 alone are black and white.
    is_binary = len(floats) == len(ranges) and largest == 1
    if floats and max(one.largest for one in floats) <= 1 and (fractions or is_binary):
        if len(floats) < len(ranges):
            raise ValueError("some images have floats of 0..1 and others have integers")
        if largest < _SMALLEST_UNIT:
            raise ValueError(
                f"floats of at most {largest:g}, expected {_INTEGERS} or floats that reach 1"
            )
        return UNIT
    if fractions and largest < _SMALLEST_FRACTIONS:
        raise ValueError(
            f"floats of at most {largest:g}, expected {_INTEGERS} or floats of 0..1 or 0..255"
        )
    return _bits(largest)


def widest(scales: Sequence[str]) -> str:
    """The scale that fits several sources with these scales; "" for a source that has none.

    Raises:
      ValueError: Some have integers and others have floats of 0..1.
    """
    found = set(scales) - {""}
    if UNIT in found and len(found) > 1:
        raise ValueError("some images have floats of 0..1 and others have integers")
    return UNIT if UNIT in found else max(found, key=int, default="")


def to_uint8(values: np.ndarray, found: Range, scale: str) -> UInt8[np.ndarray, ...]:
    """Scales the values of an image.

    Args:
      values: The values, of any shape.
      found: Their range.
      scale: `UNIT` or one of `BITS`.

    Raises:
      ValueError: The values are not of that scale.
    """
    if scale == UNIT:
        if not found.is_float or found.largest > 1:
            raise ValueError(f"{_describe(found)}, expected floats of 0..1")
        return np.rint(values * 255.0).astype(np.uint8)
    limit = 2 ** int(scale) - 1
    if round(found.largest) > limit or (found.has_fractions and found.largest <= 1):
        raise ValueError(f"{_describe(found)}, expected values of {scale} bits (0..{limit:,})")
    integers = np.rint(values).astype(np.uint16) if found.is_float else values.astype(np.uint16)
    return (integers >> (int(scale) - 8)).astype(np.uint8)


def describe(scale: str, largest: float, typical: float, images: int) -> str:
    """A phrase on how values were scaled.

    Args:
      scale: Their scale.
      largest: Largest value of any image.
      typical: Median of the images' largest values.
      images: Number of images that are not of 8 bits.
    """
    count = f"{images:,} image{'s' if images > 1 else ''}"
    if scale == UNIT:
        return f"floats of 0..1 in {count} (largest value {largest:.3g})"
    # A few bright pixels, such as a mark of saturation, make all other images dark.
    few = int(_bits(typical)) < int(scale) and images > 1
    half = f", in half of them at most {typical:,.0f}" if few else ""
    return f"{count} of more than 8 bits read as {scale} bits (largest value {largest:,.0f}{half})"


def _bits(largest: float) -> str:
    return next(bits for bits in BITS if round(largest) < 2 ** int(bits))


def _describe(found: Range) -> str:
    kind = "floats" if found.is_float else "integers"
    return f"{kind} of at most {found.largest:g}"
