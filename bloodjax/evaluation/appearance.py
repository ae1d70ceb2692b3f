"""Changes images of a site to look like the training images: colour of light and stain, size.

One change for all images of the site, as the lamp, the stain and the magnification are the site's.
It is a JAX function, so that it is part of exported programs.
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
_MOST_CONTRAST = 4.0


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How images of the site are changed. The defaults change nothing.

    Attributes:
      background: Colour (red, green, blue) of the empty glass at the site, in 1..255.
      target: The colour in 1..255 that it gets.
      contrast: Factors of optical density for red, green and blue, relative to the empty glass:
        Reinhard et al. 2001 (https://doi.org/10.1109/38.946629) match colours in such a space of
        logarithms. 1 changes nothing; 2 makes stains twice as dense.
      zoom: Factor by which cells are enlarged about the middle of the image.
    """

    background: tuple[float, float, float] = (255.0, 255.0, 255.0)
    target: tuple[float, float, float] = (255.0, 255.0, 255.0)
    contrast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    zoom: float = 1.0

    def __post_init__(self):
        light = (*self.background, *self.target)
        if len(light) != 6 or not all(1 <= value <= 255 for value in light):
            raise ValueError(f"background {self.background}, target {self.target}: not in 1..255")
        bounds = (*zip(self.contrast, [_MOST_CONTRAST] * 3, strict=True), (self.zoom, _MOST_ZOOM))
        if not all(1 / most <= value <= most for value, most in bounds):
            raise ValueError(f"contrast {self.contrast}, zoom {self.zoom}: expected factors")

    @property
    def recolours(self) -> bool:
        """Whether colours are changed."""
        return self.background != self.target or self.contrast != (1.0, 1.0, 1.0)

    def apply(self, images: Images) -> Images:
        """The images, changed; a jitted function may call it.

        Args:
          images: RGB images in 0..255. A value of 0 counts as 1 where colours are changed.
        """
        if not self.recolours and self.zoom == 1:
            return images
        x = jnp.asarray(images).astype(jnp.float32)
        if self.recolours:
            contrast = np.float32(self.contrast)
            offset = np.log(np.float32(self.target)) - contrast * np.log(
                np.float32(self.background)
            )
            logarithm = jnp.log(jnp.maximum(x, 1.0))
            x = jnp.exp(logarithm * contrast.reshape(1, 1, 1, 3) + offset.reshape(1, 1, 1, 3))
        if self.zoom != 1:
            weights = jnp.asarray(zoom_weights(x.shape[1], self.zoom))
            x = jnp.einsum("ij,njkc->nikc", weights, x)
            x = jnp.einsum("ij,nkjc->nkic", weights, x)
        return jnp.clip(jnp.round(x), 0.0, 255.0).astype(jnp.uint8)

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
        colours = [content[name] for name in ("background", "target", "contrast")]
        colours = [tuple(float(value) for value in colour) for colour in colours]
        if any(len(colour) != 3 for colour in colours):
            raise ValueError(f"colours {colours}, expected three numbers each")
        return cls(*colours, float(content["zoom"]))


def zoom_weights(size: int, zoom: float) -> Float[np.ndarray, "{size} {size}"]:
    """Weight of each row of an image in each row of the one that is enlarged about its middle.

    Interpolation is linear, with antialiasing when the image becomes smaller. Rows outside the
    image are reflected at its border, as `augment.affine` does by default.

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
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
