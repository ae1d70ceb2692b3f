"""Changes images of a site to look like the training images: colour of the light, size of cells.

One change for all images of the site, as the lamp and the magnification are the site's. It is a JAX
function, so that it is part of exported programs. Every sum and product in it is exact in float32
before it is rounded to a grey level, so that every runtime gives the same pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Images = UInt8[Array, "n size size 3"] | UInt8[np.ndarray, "n size size 3"]

_MOST_ZOOM = 4.0
# Weights of a zoom, and grey levels between its two passes, are multiples of 1 / these: products
# have 8 + 4 + 12 bits, as many as float32.
_WEIGHT_STEPS, _LEVEL_STEPS = 4096, 16.0


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How images of the site are changed. The defaults change nothing.

    Attributes:
      background: Colour (red, green, blue) of the empty glass at the site, in 1..255.
      target: The colour in 1..255 that it gets; all values of a channel change by the same factor.
      zoom: Factor by which cells are enlarged about the middle of the image.
    """

    background: tuple[float, float, float] = (255.0, 255.0, 255.0)
    target: tuple[float, float, float] = (255.0, 255.0, 255.0)
    zoom: float = 1.0

    def __post_init__(self):
        light = (*self.background, *self.target)
        if len(light) != 6 or not all(1 <= value <= 255 for value in light):
            raise ValueError(f"background {self.background}, target {self.target}: not in 1..255")
        if not 1 / _MOST_ZOOM <= self.zoom <= _MOST_ZOOM:
            raise ValueError(f"zoom {self.zoom}: expected a factor of at most {_MOST_ZOOM:g}")

    def apply(self, images: Images) -> Images:
        """The images, changed; a jitted function may call it.

        Args:
          images: RGB images in 0..255.
        """
        if self.background == self.target and self.zoom == 1:
            return images
        x = jnp.asarray(images).astype(jnp.float32)
        if self.background != self.target:
            gain = np.float32(np.array(self.target) / np.array(self.background))
            x = jnp.minimum(jnp.round(x * gain.reshape(1, 1, 1, 3)), 255.0)
        if self.zoom != 1:
            weights = jnp.asarray(zoom_weights(x.shape[1], self.zoom))
            x = jnp.einsum("ij,njkc->nikc", weights, x, precision="highest")
            x = jnp.round(x * _LEVEL_STEPS) / _LEVEL_STEPS
            x = jnp.round(jnp.einsum("ij,nkjc->nkic", weights, x, precision="highest"))
        return x.astype(jnp.uint8)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Appearance:
        """The inverse of `to_dict`.

        Raises:
          ValueError: A value is not allowed.
          KeyError: A field is missing.
        """
        colours = [content[name] for name in ("background", "target")]
        colours = [tuple(float(value) for value in colour) for colour in colours]
        if any(len(colour) != 3 for colour in colours):
            raise ValueError(f"colours {colours}, expected three numbers each")
        return cls(*colours, float(content["zoom"]))


def zoom_weights(size: int, zoom: float) -> Float[np.ndarray, "{size} {size}"]:
    """Weight of each row of an image in each row of the one that is enlarged about its middle.

    Interpolation is linear, with antialiasing when the image becomes smaller. Rows outside the
    image are reflected at its border, as `augment.affine` does by default. Weights are multiples of
    1 / 4096 and sum to 1.

    Args:
      size: Rows of the image.
      zoom: Factor; below 1 the image becomes smaller.
    """
    reach = max(1.0, 1 / zoom)  # of the triangular kernel, in rows of the image
    position = (np.arange(size) + 0.5 - size / 2) / zoom + size / 2 - 0.5
    weights = np.zeros((size, size))
    rows = np.arange(size)
    for tap in range(-math.ceil(reach), math.ceil(reach) + 1):
        index = np.floor(position) + tap
        weight = np.maximum(1 - np.abs(index - position) / reach, 0)
        folded = np.mod(index, 2 * size)
        source = np.where(folded < size, folded, 2 * size - 1 - folded).astype(int)
        np.add.at(weights, (rows, source), weight)
    weights = np.rint(_WEIGHT_STEPS * weights / weights.sum(axis=1, keepdims=True))
    weights[rows, weights.argmax(axis=1)] += _WEIGHT_STEPS - weights.sum(axis=1)
    return (weights / _WEIGHT_STEPS).astype(np.float32)
