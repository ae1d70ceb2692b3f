"""Variation of the stains' concentrations.

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
    density = -jnp.log(jnp.maximum(x, 1.0) / 255)
    # Only the change of the density is computed, so that a change of 0 preserves even black.
    change = ((STAINS_FROM_RGB * (scale - 1)[None])[:, :, None] * RGB_FROM_STAINS[None]).sum(axis=1)
    added = (np.log(10) * shift[:, None] * RGB_FROM_STAINS).sum(axis=0)[None, None]
    for channel in range(3):
        added = added + density[..., channel, None] * change[channel][None, None]
    return jnp.clip(x * jnp.exp(-added), 0.0, 255.0)
