"""Variation of the stains' concentrations, and of the stains themselves.

As in `filters`, functions take and return one RGB image, float32 in 0..255, and their strengths may
be traced.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bloodjax.augment.filters import Image

# Optical density in red, green and blue of haematoxylin, eosin and, as the residual, DAB; one per
# row (Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution",
# 2001). Of a blood smear's stains, azure B is close to haematoxylin, and eosin is the same.
RGB_FROM_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
STAINS_FROM_RGB = np.linalg.inv(RGB_FROM_STAINS)

# Optical density of the stains of a blood smear (Romanowsky stains: Giemsa, May-Gruenwald, Wright),
# one per row: the blue dye, azure B and its relatives, and eosin Y, as published with ImageJ's
# plugin Colour Deconvolution (Landini et al., "Colour deconvolution: stain unmixing in histological
# imaging", 2021, doi:10.1093/bioinformatics/btaa847; scikit-image's `rgb_from_bex`). The residual
# is orthogonal to both.
_AZURE, _EOSIN = (
    np.array([0.834750233, 0.513556283, 0.196330403]),
    np.array([0.092789, 0.954111, 0.283111]),
)
_SMEAR = np.array([_AZURE, _EOSIN, np.cross(_AZURE, _EOSIN)])
RGB_FROM_SMEAR = _SMEAR.astype(np.float32)
SMEAR_FROM_RGB = np.linalg.inv(_SMEAR).astype(np.float32)


def _tangents(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two unit vectors at right angles to `vector`: towards `other`, and out of their plane."""
    towards = other - vector * (vector @ other) / (vector @ vector)
    across = np.cross(vector, other)
    return np.stack([v / np.linalg.norm(v) for v in (towards, across)])


# For azure and eosin, the directions into which their vectors are turned.
_TANGENTS = np.stack([_tangents(_AZURE, _EOSIN), _tangents(_EOSIN, _AZURE)]).astype(np.float32)


def stain_jitter(x: Image, scale: Float[Array, " 3"], shift: Float[Array, " 3"]) -> Image:
    """Changes the amount of each stain in each pixel to amount * scale + shift.

    Amounts are optical densities in decades: 6 times those of scikit-image's `rgb2hed`. Tellez et
    al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks", 2018 (arXiv:1808.05896).

    Args:
      x: The image. A channel value below 1 counts as 1.
      scale: Factors for haematoxylin, eosin and the residual; 1 changes nothing.
      shift: Amounts added to each; 0 changes nothing.
    """
    change = ((STAINS_FROM_RGB * (scale - 1)[None])[:, :, None] * RGB_FROM_STAINS[None]).sum(axis=1)
    added = (np.log(10) * shift[:, None] * RGB_FROM_STAINS).sum(axis=0)
    return change_density(x, change, added)


def smear(
    scale: Float[Array, " 3"], shift: Float[Array, " 3"], turned: Float[Array, "2 2"]
) -> tuple[Float[Array, "3 3"], Float[Array, " 3"]]:
    """A smear of another laboratory, as the arguments of `change_density`.

    The density of each pixel is taken apart into amounts of azure, eosin and a residual (Ruifrok
    and Johnston, 2001). Each amount is scaled and shifted, which varies concentration, thickness
    and background, and is put together with vectors that are turned: laboratories differ in the
    hue of azure, from blue to purple, with its demethylation, the pH and the time of staining.
    All of it is one linear map of the three densities.

    Args:
      scale: Factors for the amounts of azure, eosin and the residual; 1 changes nothing.
      shift: Amounts added to each, in decades; 0 changes nothing.
      turned: For azure and eosin, tangents of the angles by which the vector is turned towards the
        other one, and out of the plane of both; 0 changes nothing.

    Returns:
      The change of the densities per density, and the density added to each channel.
    """
    moved = RGB_FROM_SMEAR[:2] + (turned[:, :, None] * _TANGENTS).sum(1)
    moved = moved / jnp.sqrt(1 + (turned**2).sum(1, keepdims=True))
    new = jnp.concatenate([moved, RGB_FROM_SMEAR[2:]])
    # Differences, so that arguments that change nothing give exactly 0.
    difference = scale[:, None] * new - RGB_FROM_SMEAR
    change = (SMEAR_FROM_RGB[:, :, None] * difference[None]).sum(1)
    return change, (np.float32(np.log(10)) * shift[:, None] * new).sum(0)


def change_density(x: Image, change: Float[Array, "3 3"], added: Float[Array, " 3"]) -> Image:
    """Changes the optical density d of each pixel to d + d @ change + added, by natural logarithms.

    Args:
      x: The image. A channel value below 1 counts as 1.
      change: From the density of each channel (row) to the change of that of each (column).
      added: Density added to each channel.
    """
    density = -jnp.log(jnp.maximum(x, 1.0) / 255)
    # Only the change of the density is computed, so that a change of 0 preserves even black.
    total = added[None, None]
    for channel in range(3):
        total = total + density[..., channel, None] * change[channel][None, None]
    return jnp.clip(x * jnp.exp(-total), 0.0, 255.0)
