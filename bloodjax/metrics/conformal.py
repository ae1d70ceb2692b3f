"""Conformal sets: the classes that an image may be of, with a known share of misses.

Split-conformal sets of the least ambiguous kind (Sadinle, Lei and Wasserman 2019, Least ambiguous
set-valued classifiers with bounded error levels, https://arxiv.org/abs/1609.00451): the classes
whose probability is at least a threshold, which is a quantile of the true classes' probabilities
on a calibration set. For images that are exchangeable with that set, a set lacks the true class
with a probability of at most alpha, on average over calibration sets.

The most probable class is always in its set. That only adds to the coverage; without it, a
classifier that errs less often than alpha would give empty sets.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from bloodjax.metrics.intervals import wilson_interval


def threshold(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], alpha: float
) -> float:
    """The lowest probability of a class in a set.

    It is the k-th lowest probability of a true class with k = floor(alpha (n + 1)), so at most
    k - 1 of n calibration images have a true class below it. Fewer than 1 / alpha - 1 images give
    0: all classes are in every set.

    Args:
      probabilities: Class probabilities of the calibration set.
      labels: True class indices.
      alpha: Share of sets that may lack the true class, above 0 and below 1.

    Raises:
      ValueError: `alpha` is out of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a number above 0 and below 1")
    n = len(labels)
    # Rounding errors must not lower k where alpha * (n + 1) is an integer.
    k = math.floor(alpha * (n + 1) + 1e-9)
    if k < 1:
        return 0.0
    return float(np.sort(probabilities[np.arange(n), labels])[k - 1])


def sets(
    probabilities: Float[np.ndarray, "n classes"],
    lowest: float,
    possible: Bool[np.ndarray, " classes"] | None = None,
) -> Bool[np.ndarray, "n classes"]:
    """Whether each class is in each image's set.

    Args:
      probabilities: Class probabilities.
      lowest: Lowest probability of a class in a set, from `threshold`.
      possible: Whether each class can occur; the others are in no set. None for all.
    """
    top = probabilities == probabilities.max(axis=1, initial=0, keepdims=True)
    members = (probabilities >= lowest) | top
    return members if possible is None else members & possible


def coverage(
    members: Bool[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> dict[str, object]:
    """How often sets have the true class, and how large they are.

    Args:
      members: Whether each class is in each image's set, of at least one image.
      labels: True class indices.

    Returns:
      `coverage`, its Wilson interval `coverage_ci95`, and `mean_size`, classes in a set.
    """
    hits = members[np.arange(len(labels)), labels]
    return {
        "coverage": float(hits.mean()),
        "coverage_ci95": list(wilson_interval(int(hits.sum()), len(hits))),
        "mean_size": float(members.sum(axis=1).mean()),
    }
