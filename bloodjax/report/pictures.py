"""Images inside a page: small JPEG files within a budget of bytes."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from bloodjax.data.images import encode_thumbnail
from bloodjax.report import html

SIDE = 96  # Pixels of the longer side.


class Pictures:
    """Encodes images for a page until they have taken its budget.

    Attributes:
      left: Bytes that further images may take.
      left_out: Number of images that did not fit.
    """

    def __init__(self, budget: int):
        """Starts with a budget of so many bytes."""
        self.left, self.left_out = budget, 0

    def add(self, image: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> str:
        """The `src` of an image, shrunk to `side` pixels; "" once one did not fit."""
        if self.left_out == 0:
            src = html.data_uri(encode_thumbnail(np.asarray(image), side), "jpeg")
            if len(src) <= self.left:
                self.left -= len(src)
                return src
        self.left_out += 1
        return ""
