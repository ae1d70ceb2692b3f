"""Draws attribution maps over images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

# Seventeen equidistant colours of viridis (van der Walt and Smith, 2015), whose lightness rises
# evenly; people with any colour vision can read it. Stained cells are purple, blue and pink, and
# its upper half, green to yellow, differs from all of these.
_VIRIDIS = np.array(
    [
        *((68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141)),
        *((44, 114, 142), (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128)),
        *((63, 188, 115), (94, 201, 98), (132, 212, 75), (173, 220, 48), (216, 226, 25)),
        (253, 231, 37),
    ],
    np.float32,
)
# Opacity of the strongest attribution. The structure of the cell stays visible below it.
_OPACITY = 0.7


def colours(values: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape 3"]:
    """Colours of viridis, in 0..255, for values in 0..1."""
    positions = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(values, positions, channel) for channel in _VIRIDIS.T]
    return np.stack(channels, axis=-1).astype(np.float32)


def overlay(
    image: UInt8[np.ndarray, "height width 3"], attribution: Float32[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """An image under its attribution map, whose opacity rises with the attribution.

    Args:
      image: RGB image.
      attribution: Its map, in 0..1. Where it is 0, the image is unchanged.
    """
    opacity = _OPACITY * np.sqrt(attribution)[..., None]
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colours(attribution)
    return np.round(mixed).astype(np.uint8)
