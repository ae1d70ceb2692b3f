"""Linear heads on a network's features, each fitted without the images that it predicts.

The head is linear discriminant analysis: Gaussians of one covariance, with a closed form that takes
seconds where training k networks takes hours. The network has seen the labels, so its features are
not independent of them; a head that is fitted to the other folds only is less affected by a single
wrong label than the network's own prediction is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy
from jaxtyping import Float, Int

FOLDS = 5
_ROWS_AT_ONCE = 4096  # Bounds the memory of features in double precision.


def out_of_fold(
    features: Float[np.ndarray, "n features"],
    labels: Int[np.ndarray, " n"],
    fold_of: Int[np.ndarray, " n"],
    num_classes: int,
) -> Float[np.ndarray, "n classes"]:
    """Class probabilities of each image by the head of its fold; rows sum to 1.

    The probabilities are scaled by one temperature that minimises their log loss, since the
    Gaussians' own are far too confident.

    Args:
      features: Features of the images.
      labels: Class indices. Every class that occurs has images outside of each fold.
      fold_of: Fold of each image, 0, 1, ...
      num_classes: Number of classes. One without images has probability 0.
    """
    # Sums of squares of features near 0 do not lose digits.
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    folds = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of)]
    moments = [_moments(features, labels, index, centre, num_classes) for index in folds]
    logits = np.full((len(labels), num_classes), -np.inf)
    for index, own in zip(folds, moments, strict=True):
        weights, bias = _fit([other for other in moments if other is not own])
        for start in range(0, len(index), _ROWS_AT_ONCE):
            rows = index[start : start + _ROWS_AT_ONCE]
            logits[rows] = (features[rows] - centre).astype(np.float64) @ weights + bias
    return scipy.special.softmax(logits / _temperature(logits, labels), axis=1)


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Sums over the images of a fold.

    Attributes:
      counts: Number of images of each class.
      sums: Sum of the features of each class.
      products: Sum of the outer products of the features with themselves.
    """

    counts: Int[np.ndarray, " classes"]
    sums: Float[np.ndarray, "classes features"]
    products: Float[np.ndarray, "features features"]


def _moments(
    features: np.ndarray, labels: np.ndarray, index: np.ndarray, centre: np.ndarray, classes: int
) -> _Moments:
    size = features.shape[1]
    sums, products = np.zeros((classes, size)), np.zeros((size, size))
    for start in range(0, len(index), _ROWS_AT_ONCE):
        rows = index[start : start + _ROWS_AT_ONCE]
        values = (features[rows] - centre).astype(np.float64)
        products += values.T @ values
        np.add.at(sums, labels[rows], values)
    return _Moments(np.bincount(labels[index], minlength=classes), sums, products)


def _fit(folds: list[_Moments]) -> tuple[np.ndarray, np.ndarray]:
    """The head's weights [features, classes] and bias [classes] for these folds."""
    counts = np.sum([fold.counts for fold in folds], axis=0)
    sums = np.sum([fold.sums for fold in folds], axis=0)
    means = sums / np.maximum(counts, 1)[:, None]
    n, size = counts.sum(), sums.shape[1]
    covariance = (np.sum([fold.products for fold in folds], axis=0) - sums.T @ means) / n
    # Fewer images than features leave directions without any variance. A multiple of the identity
    # (the form of Ledoit and Wolf 2004) has the more weight, the fewer images there are.
    shrinkage = size / (size + n)
    scale = max(0.0, np.trace(covariance) / size)
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(size)] += shrinkage * scale + np.finfo(np.float32).tiny
    weights = scipy.linalg.solve(covariance, means.T, assume_a="pos")
    with np.errstate(divide="ignore"):  # The logarithm is -inf for a class without images.
        bias = np.log(counts / n) - np.sum(means.T * weights, axis=0) / 2
    return weights, bias


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the log loss."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        logs = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -logs[rows, labels].mean()

    bounds = (np.log(1e-2), np.log(1e4))
    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))
