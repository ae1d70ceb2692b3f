"""Images that are unlike all others: how far each one is from its nearest kin."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, UInt8

# Colour is compared along these directions of (brightness, red - green, yellow - blue) ...
_AXES = np.eye(3)
_DIAGONALS = [[0, 1, 1], [0, 1, -1], [1, 0, 1], [1, 0, -1], [1, 1, 0], [1, -1, 0]]
_DIRECTIONS = np.concatenate([_AXES, np.array(_DIAGONALS) / np.sqrt(2)]).astype(np.float32)
# ... at these quantiles of an image's pixels.
_QUANTILES = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])

# What the eye takes for a clear change is the unit of each kind of feature.
_COLOUR_UNIT = 0.07  # of the range from black to white
_ENERGY_UNIT = 0.4  # nats: contrast at one scale or in one direction
# Two random cells of one stain and different types are about this far apart.
_LEAST_SPREAD = 10.0

_KIN = 3  # up to three strange images of one kind do not vouch for each other
_MIN_IMAGES = 50  # fewer say too little of what is usual
_ROWS = 512  # images a block: bounds the memory
# Of more images than the first, each is compared with as many of them as the second, drawn by
# chance: time grows with their number then, no longer with its square.
MOST = 50_000
_KIN_DRAWN = 10_000


def oddness(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Float64[np.ndarray, " n"]:
    """How unlike the others each image is; 1 is as unlike as two random images are.

    The distance of an image to its third nearest neighbour, over the median distance of random
    pairs: a rare cell has kin at about that distance, a foreign frame at twice as much. The scale
    comes from the data and does not depend on their number. It has a lower bound, so that a set of
    one type of cells does not make its every variant odd.

    Distances are Euclidean, over colour and texture without position: quantiles of colour along
    nine directions (a sliced Wasserstein distance), the log energy of brightness and of two colour
    differences at four scales, and the balance of upright and level edges.

    Args:
      thumbnails: distinct images, reduced to 48x48; with copies among them, an odd image would
        find its own copies near. With fewer than 50 nothing is odd: zeros.
    """
    return oddness_of(features(thumbnails))


def oddness_of(features: Float32[np.ndarray, "n 76"]) -> Float64[np.ndarray, " n"]:
    """`oddness`, from the `features` of the images."""
    n = len(features)
    if n < _MIN_IMAGES:
        return np.zeros(n)
    one, other = np.random.default_rng(0).integers(0, n, (2, 10_000))
    pairs = np.linalg.norm(features[one] - features[other], axis=1)[one != other]
    return _distance_to_kin(features) / max(float(np.median(pairs)), _LEAST_SPREAD)


def features(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Float32[np.ndarray, "n 76"]:
    """Colour and texture of each image, in units of what the eye takes for a clear change."""
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


def _distance_to_kin(features: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    features = features - features.mean(0)
    n = len(features)
    squares = (features**2).sum(1)
    is_kin = np.ones(n, bool)
    if n > MOST:
        is_kin[:] = False
        is_kin[np.random.default_rng(0).choice(n, _KIN_DRAWN, replace=False)] = True
    kin, kin_squares = features[is_kin], squares[is_kin]
    nearest = np.empty(n)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        squared = squares[rows, None] + kin_squares - 2 * features[rows] @ kin.T
        ranked = np.partition(squared, (_KIN - 1, _KIN), axis=1)
        # Of its kin, an image that is among them is its own first.
        nearest[rows] = np.where(is_kin[rows], ranked[:, _KIN], ranked[:, _KIN - 1])
    return np.sqrt(np.maximum(nearest, 0))
