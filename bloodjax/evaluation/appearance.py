"""Changes images of a site to look like the training images: light, stains, size of cells.

One change for all images of the site, as the lamp, the stains and the magnification are the site's.
It is a JAX function, so that it is part of exported programs. For light and size, every sum and
product is exact in float32 before it is rounded to a grey level, so that every runtime gives the
same pixels. The logarithm and the exponential of the stains are not exact: with them a pixel can
differ by one grey level between runtimes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from bloodjax.augment.zoom import zoom

Images = UInt8[Array, "n size size 3"] | UInt8[np.ndarray, "n size size 3"]

_MOST_ZOOM = 4.0

Matrix = tuple[tuple[float, float, float], ...]
UNCHANGED: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How images of the site are changed. The defaults change nothing.

    Attributes:
      background: Colour (red, green, blue) of the empty glass at the site, in 1..255.
      target: The colour in 1..255 that it gets; all values of a channel change by the same factor.
      density: Matrix that the optical densities (natural logarithms, relative to `target`) of a
        pixel, as a row of red, green and blue, are multiplied by.
      zoom: Factor by which cells are enlarged about the middle of the image.
    """

    background: tuple[float, float, float] = (255.0, 255.0, 255.0)
    target: tuple[float, float, float] = (255.0, 255.0, 255.0)
    zoom: float = 1.0
    density: Matrix = UNCHANGED

    def __post_init__(self):
        light = (*self.background, *self.target)
        if len(light) != 6 or not all(1 <= value <= 255 for value in light):
            raise ValueError(f"background {self.background}, target {self.target}: not in 1..255")
        if not 1 / _MOST_ZOOM <= self.zoom <= _MOST_ZOOM:
            raise ValueError(f"zoom {self.zoom}: expected a factor of at most {_MOST_ZOOM:g}")
        if np.shape(self.density) != (3, 3) or not np.all(np.isfinite(self.density)):
            raise ValueError(f"density {self.density}: expected 3x3 numbers")

    @property
    def changes_nothing(self) -> bool:
        """Whether images stay as they are."""
        same_light = self.background == self.target
        return same_light and self.zoom == 1 and self.density == UNCHANGED

    def apply(self, images: Images) -> Images:
        """The images, changed; a jitted function may call it.

        Args:
          images: RGB images in 0..255.
        """
        if self.background != self.target:
            gain = np.float32(np.array(self.target) / np.array(self.background))
            lit = jnp.round(jnp.asarray(images).astype(jnp.float32) * gain.reshape(1, 1, 1, 3))
            images = jnp.minimum(lit, 255.0).astype(jnp.uint8)
        if self.density != UNCHANGED:
            images = self._stained(images)
        return images if self.zoom == 1 else zoom(images, self.zoom)

    def _stained(self, images: Images) -> Images:
        light = np.float32(np.array(self.target) + 1).reshape(1, 1, 1, 3)
        # Minus the density. `stain.change_density` keeps black, which has to become lighter here.
        logarithm = jnp.log((jnp.asarray(images).astype(jnp.float32) + 1) / light)
        # Not a matrix product, which a TPU would compute in bfloat16.
        matrix = np.float32(self.density).reshape(3, 1, 1, 1, 3)
        changed = sum(logarithm[..., i : i + 1] * matrix[i] for i in range(3))
        return jnp.clip(jnp.round(light * jnp.exp(changed) - 1), 0.0, 255.0).astype(jnp.uint8)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values = dataclasses.asdict(self) | {"density": [list(row) for row in self.density]}
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
        # Files that were written before there was a density have none.
        density = tuple(tuple(float(v) for v in row) for row in content.get("density", UNCHANGED))
        return cls(*colours, float(content["zoom"]), density)
