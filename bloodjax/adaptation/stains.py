"""Stains of a laboratory: the optical densities of its images, and the map between two of them.

The stains are described by the second moments of the optical densities of red, green and blue. The
map from one laboratory to another is the linear one that gives the densities the other's second
moments and changes them least: the optimal transport between normal distributions (Peyré and Cuturi
2019, https://arxiv.org/abs/1803.00567, remark 2.31).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from bloodjax.data.lazy import AT_ONCE

_LEAST_DENSITY = 1e-6  # of a second moment, so that every moment has an inverse

Moment = Float[np.ndarray, "3 3"]


def light(background: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The background of each image; white where none was seen.

    Args:
      background: `cell_finder.FoundCells.background`.
    """
    return np.nan_to_num(background.astype(np.float64), nan=255.0)


def density(
    images: UInt8[np.ndarray, "n size size 3"], background: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n size size 3"]:
    """Optical density relative to the background, as natural logarithms.

    Args:
      images: RGB images.
      background: The colour of each image's background, in 0..255.
    """
    return np.log(background + 1)[:, None, None] - np.log(images + 1.0)


def second_moment(densities: Float[np.ndarray, "n size size 3"]) -> Moment:
    """Mean of the products of the densities, over the middle of at least one image."""
    return _moments(densities).mean(axis=0) + _LEAST_DENSITY * np.eye(3)


def of_images(
    images: UInt8[np.ndarray, "n size size 3"],
    background: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"] | None = None,
) -> Moment:
    """`second_moment` of the densities of at least one image.

    Args:
      images: RGB images.
      background: The colour of each image's background, in 0..255.
      weights: Weight of each image, in any scale; one of them must be above 0. By default all are
        alike.
    """
    starts = range(0, len(images), AT_ONCE)
    blocks = [slice(start, start + AT_ONCE) for start in starts]
    moments = [_moments(density(images[block], background[block])) for block in blocks]
    mean = np.average(np.concatenate(moments), axis=0, weights=weights)
    return mean + _LEAST_DENSITY * np.eye(3)


def transport(before: Moment, after: Moment) -> Moment:
    """The symmetric map of densities, `density @ map`, after which `before` is `after`."""
    root = _root(before)
    back = np.linalg.inv(root)
    return back @ _root(root @ after @ root) @ back


def _moments(densities: Float[np.ndarray, "n size size 3"]) -> Float[np.ndarray, "n 3 3"]:
    edge = densities.shape[1] // 4
    size = densities.shape[1] - edge
    middle = densities[:, edge:size, edge:size].reshape(len(densities), -1, 3)
    return middle.swapaxes(1, 2) @ middle / middle.shape[1]


def _root(moment: Moment) -> Moment:
    values, vectors = np.linalg.eigh(moment)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
