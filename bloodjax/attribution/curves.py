"""Deletion and insertion curves: whether the pixels that a map marks matter to the network.

Petsiuk et al., "RISE", 2018, arXiv:1806.07421. Pixels are removed from an image, or put into an
empty one, in the order of their attribution. A faithful map makes the probability of the class fall
fast on deletion, and rise fast on insertion.
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float, UInt8

Image = UInt8[np.ndarray, "height width 3"]
Sequence = UInt8[np.ndarray, "steps height width 3"]

# Standard deviation of the Gaussian that blurs an image until no cell can be told from another,
# relative to its longer side.
_BLUR = 1 / 8


def deletion(image: Image, attribution: Float[np.ndarray, "height width"], steps: int) -> Sequence:
    """The image while its pixels are replaced by those of a blurred copy, most attributed first.

    Args:
      image: RGB image.
      attribution: Its map. Pixels of the same attribution are replaced from top to bottom.
      steps: Number of images, from the image itself to its blurred copy.
    """
    return _mixed(image, blurred(image), attribution, steps)


def insertion(image: Image, attribution: Float[np.ndarray, "height width"], steps: int) -> Sequence:
    """A blurred copy of the image while its pixels are put in; arguments as for `deletion`."""
    return _mixed(blurred(image), image, attribution, steps)


def area(probabilities: Float[np.ndarray, "*n steps"]) -> Float[np.ndarray, "*n"]:
    """Area under a curve of probabilities over the share of replaced pixels, in 0..1."""
    return np.trapezoid(probabilities, axis=-1) / (probabilities.shape[-1] - 1)


def blurred(image: Image) -> Image:
    """A copy without structure, of about the image's colours."""
    sigma = _BLUR * max(image.shape[:2])
    smooth = scipy.ndimage.gaussian_filter(
        image.astype(np.float32), (sigma, sigma, 0), mode="nearest"
    )
    return np.round(smooth).astype(np.uint8)


def _mixed(before: Image, after: Image, attribution: np.ndarray, steps: int) -> Sequence:
    order = np.argsort(-attribution, axis=None, kind="stable")
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    replaced = np.linspace(0, order.size, steps).round().astype(np.int64)
    is_replaced = rank.reshape(1, *attribution.shape) < replaced[:, None, None]
    return np.where(is_replaced[..., None], after, before)
