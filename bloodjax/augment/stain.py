"""Stain and light: how strongly a cell is dyed, and the colour of the lamp.

One RGB image, float32 in 0..255, in and out, with traced strengths, as in `filters`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bloodjax.augment.filters import Image

# Optical density of each stain in red, green and blue (Ruifrok and Johnston, "Quantification of
# histochemical staining by color deconvolution", 2001): haematoxylin, eosin, and as the rest DAB.
# A blood smear's azure B is near haematoxylin, and its eosin is eosin.
RGB_FROM_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
STAINS_FROM_RGB = np.linalg.inv(RGB_FROM_STAINS)


def stain_jitter(x: Image, scale: Float[Array, " 3"], shift: Float[Array, " 3"]) -> Image:
    """Changes how much of each stain a pixel holds: amount * scale + shift.

    The amounts are those of scikit-image's `rgb2hed` times 6: optical density in decades. Tellez et
    al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks", 2018 (arXiv:1808.05896).

    Args:
      x: image. The density of a channel below one grey level counts as that of one.
      scale: factors for haematoxylin, eosin and the rest; 1 changes nothing.
      shift: what is added to each; 0 changes nothing.
    """
    density = -jnp.log(jnp.maximum(x, 1.0) / 255)
    # Only the change is computed, so that no change leaves even black as it is.
    change = ((STAINS_FROM_RGB * (scale - 1)[None])[:, :, None] * RGB_FROM_STAINS[None]).sum(axis=1)
    added = (np.log(10) * shift[:, None] * RGB_FROM_STAINS).sum(axis=0)[None, None]
    for channel in range(3):
        added = added + density[..., channel, None] * change[channel][None, None]
    return jnp.clip(x * jnp.exp(-added), 0.0, 255.0)
