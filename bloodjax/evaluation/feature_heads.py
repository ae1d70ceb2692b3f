"""Linear heads on a network's features, each fitted without the images that it predicts.

The head is linear discriminant analysis: Gaussians of one covariance, with a closed form that takes
seconds where training k networks takes hours. The network has seen the labels, so its features are
not independent of them; a head that is fitted to the other folds only is less affected by a single
wrong label than the network's own prediction is.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Int
from scipy.special import log_softmax, softmax

FOLDS = 5


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
    logits = np.full((len(labels), num_classes), -np.inf)
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        logits[held_out] = _fit(features[~held_out], labels[~held_out], num_classes)(
            features[held_out]
        )
    return softmax(logits / _temperature(logits, labels), axis=1)


def _fit(features: np.ndarray, labels: np.ndarray, num_classes: int):
    """Fits the head; returns the function from features to logits."""
    counts = np.bincount(labels, minlength=num_classes)
    present = np.flatnonzero(counts)
    features = features.astype(np.float64)
    means = np.stack([features[labels == label].mean(axis=0) for label in present])
    centred = features - means[np.searchsorted(present, labels)]
    covariance = centred.T @ centred / len(features)
    scale = np.trace(covariance) / len(covariance)
    # Fewer images than features leave directions without any variance. A multiple of the identity
    # (the form of Ledoit and Wolf 2004) has the more weight, the fewer images there are.
    shrinkage = len(covariance) / (len(covariance) + len(features))
    covariance *= 1 - shrinkage
    covariance[np.diag_indices_from(covariance)] += shrinkage * scale + np.finfo(np.float32).tiny
    weights = scipy.linalg.solve(covariance, means.T, assume_a="pos")
    bias = np.log(counts[present] / len(labels)) - np.sum(means.T * weights, axis=0) / 2

    def logits(features: np.ndarray) -> np.ndarray:
        result = np.full((len(features), num_classes), -np.inf)
        result[:, present] = features.astype(np.float64) @ weights + bias
        return result

    return logits


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the log loss."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = (np.log(1e-2), np.log(1e4))
    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))
