"""Outlier scores: how far each image is from its nearest neighbours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

# Colour is compared along these directions of (brightness, red - green, yellow - blue) ...
_AXES = np.eye(3)
_DIAGONALS = [[0, 1, 1], [0, 1, -1], [1, 0, 1], [1, 0, -1], [1, 1, 0], [1, -1, 0]]
_DIRECTIONS = np.concatenate([_AXES, np.array(_DIAGONALS) / np.sqrt(2)]).astype(np.float32)
# ... at these quantiles of an image's pixels.
_QUANTILES = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])

# Unit of each kind of feature: a change that is clearly visible.
_COLOUR_UNIT = 0.07  # of the range from black to white
_ENERGY_UNIT = 0.4  # nats: contrast at one scale or in one direction
# Distance of two random cells of different types in one stain.
_MIN_SPREAD = 10.0

_NEIGHBOURS = 3  # up to three similar junk images do not hide one another
_MIN_IMAGES = 50  # fewer do not show what is usual
_MIN_CLASS = 5  # nor do fewer in a class
_ROWS = 512  # images per block; bounds the memory
# Up to MAX_PAIRWISE images are compared in pairs. Of more, each is compared with _SAMPLED random
# ones, so that the time grows linearly with their number.
MAX_PAIRWISE = 50_000
_SAMPLED = 10_000


def outlier_scores(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Float64[np.ndarray, " n"]:
    """Distance of each image to its third nearest neighbour, over that of random pairs of images.

    A rare cell has neighbours at about the median distance of random pairs, which is a score of 1;
    an image that is not a cell has them at twice that distance. The scale comes from the data and
    does not depend on the number of images. It has a lower bound, so that the variants within a
    dataset of one cell type do not get high scores.

    Distances are Euclidean, in features of colour and texture without position: quantiles of colour
    along nine directions (a sliced Wasserstein distance), the log energy of brightness and of two
    colour differences at four scales, and the ratio of vertical to horizontal edges.

    Args:
      thumbnails: Distinct images, resized to 48x48. An outlier with copies would have these as
        near neighbours.

    Returns:
      Scores; zeros for fewer than 50 images.
    """
    return scores_from_features(features(thumbnails))


def scores_from_features(features: Float32[np.ndarray, "n 76"]) -> Float64[np.ndarray, " n"]:
    """`outlier_scores` of images with these `features`."""
    n = len(features)
    if n < _MIN_IMAGES:
        return np.zeros(n)
    one, other = np.random.default_rng(0).integers(0, n, (2, 10_000))
    pairs = np.linalg.norm(features[one] - features[other], axis=1)[one != other]
    return _neighbour_distance(features) / max(float(np.median(pairs)), _MIN_SPREAD)


def scores_within(
    features: Float32[np.ndarray, "n 76"],
    candidates: Int[np.ndarray, " k"],
    members: Int[np.ndarray, " m"],
) -> Float64[np.ndarray, " k"]:
    """Outlier scores of some images of a class, relative to this class alone.

    An image of a rare class that is unlike all other classes has a low score here, as its class
    varies as much as the image differs from it.

    Args:
      features: Features of all images.
      candidates: Indices of the images to score.
      members: Indices of the images of the class, which include the candidates.

    Returns:
      Distance to the third nearest image of the class, over that of random pairs in the class;
      zeros for a class of fewer than five images, which does not show what is usual.
    """
    if len(members) < _MIN_CLASS:
        return np.zeros(len(candidates))
    rng = np.random.default_rng(0)
    if len(members) > _SAMPLED:
        members = rng.choice(members, _SAMPLED, replace=False)
    one, other = rng.choice(members, (2, 10_000))
    pairs = np.linalg.norm(features[one] - features[other], axis=1)[one != other]
    nearest = np.empty(len(candidates))
    for i, candidate in enumerate(candidates.tolist()):
        others = features[members[members != candidate]]
        distances = np.linalg.norm(others - features[candidate], axis=1)
        nearest[i] = np.partition(distances, _NEIGHBOURS - 1)[_NEIGHBOURS - 1]
    return nearest / max(float(np.median(pairs)), _MIN_SPREAD)


def features(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Float32[np.ndarray, "n 76"]:
    """Colour and texture of each image; 1 is a change that is clearly visible."""
    found = np.empty((len(thumbnails), 76), np.float32)
    for start in range(0, len(found), _ROWS):
        found[start : start + _ROWS] = _features(thumbnails[start : start + _ROWS])
    return found


def _features(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Float32[np.ndarray, "n 76"]:
    red, green, blue = np.moveaxis(thumbnails.astype(np.float32) / 255, -1, 0)
    opponent = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=1)
    n = len(opponent)

    sample = opponent[:, :, ::2, ::2].reshape(n, 3, -1)
    ranked = np.sort(_DIRECTIONS @ sample, axis=-1)
    colours = ranked[:, :, (_QUANTILES * ranked.shape[-1]).astype(int)].reshape(n, -1)

    upright, level = (np.diff(opponent[:, :1], axis=axis) for axis in (3, 2))
    energies = [_log_energy(upright) - _log_energy(level)]
    for _ in range(4):
        side = opponent.shape[-1] // 2
        coarse = opponent.reshape(n, 3, side, 2, side, 2).mean((3, 5))
        energies.append(_log_energy(opponent - coarse.repeat(2, axis=2).repeat(2, axis=3)))
        opponent = coarse
    return np.concatenate(
        [colours / _COLOUR_UNIT, np.concatenate(energies, axis=1) / _ENERGY_UNIT], axis=1
    )


def _log_energy(x: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c"]:
    return np.log((x**2).mean((2, 3)) + np.float32(1e-6))  # 1e-6: a quarter of a grey level


def _neighbour_distance(features: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    features = features - features.mean(0)
    n = len(features)
    squares = (features**2).sum(1)
    is_candidate = np.ones(n, bool)
    if n > MAX_PAIRWISE:
        is_candidate[:] = False
        is_candidate[np.random.default_rng(0).choice(n, _SAMPLED, replace=False)] = True
    candidates, candidate_squares = features[is_candidate], squares[is_candidate]
    nearest = np.empty(n)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        squared = squares[rows, None] + candidate_squares - 2 * features[rows] @ candidates.T
        ranked = np.partition(squared, (_NEIGHBOURS - 1, _NEIGHBOURS), axis=1)
        # A candidate is its own nearest neighbour, which does not count.
        nth = np.where(is_candidate[rows], _NEIGHBOURS, _NEIGHBOURS - 1)
        nearest[rows] = np.take_along_axis(ranked, nth[:, None], axis=1)[:, 0]
    return np.sqrt(np.maximum(nearest, 0))
