"""Confident learning: which labels are likely wrong, given predictions made without them.

Northcutt, Jiang and Chuang 2021 (Confident learning: estimating uncertainty in dataset labels,
Journal of Artificial Intelligence Research 70, https://arxiv.org/abs/1911.00068). The predictions
must come from a model that was not fitted to the label that they judge.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Images whose label is likely wrong, the most suspicious first.

    Attributes:
      index: Index of each image.
      suggested: The most probable other class.
      score: Probability of the suggested class minus that of the label, 0..1, descending.
      joint: Estimated share of the images with label i that are of class j, [i, j]; sums to 1.
      thresholds: Least probability at which a class counts as confident: the mean probability of
        the class over the images labelled as it. Infinite for a class without images.
    """

    index: Int[np.ndarray, " m"]
    suggested: Int[np.ndarray, " m"]
    score: Float[np.ndarray, " m"]
    joint: Float[np.ndarray, "classes classes"]
    thresholds: Float[np.ndarray, " classes"]

    @property
    def noise(self) -> float:
        """Estimated share of the labels that are wrong, 0..1."""
        return float(max(0.0, 1 - np.trace(self.joint)))


def find(probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Suspects:
    """Finds the images that are most likely labelled as another class than their own.

    A class is confident for an image if its probability is at least the class's threshold. The
    counts of images by label and most probable confident class are the confident joint, which
    estimates how many labels are wrong. So many images are returned, by rank: those whose most
    probable other class exceeds the label by the largest margin ("prune by noise rate", over all
    classes).

    Args:
      probabilities: Class probabilities of each image, by a model that has not seen its label.
      labels: The labels to judge.

    Raises:
      ValueError: There are no images, or a label is out of range.
    """
    n, num_classes = probabilities.shape
    if n == 0:
        raise ValueError("no images whose labels can be judged")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} for {num_classes} classes")
    probabilities = probabilities.astype(np.float64)
    of_label = probabilities[np.arange(n), labels]
    support = np.bincount(labels, minlength=num_classes)
    thresholds = np.full(num_classes, np.inf)
    sums = np.bincount(labels, of_label, minlength=num_classes)
    np.divide(sums, support, out=thresholds, where=support > 0)
    # Rounding of the mean must not exclude images that all have the same probability.
    confident = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    counted = confident.max(axis=1) >= 0
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels[counted], confident[counted].argmax(axis=1)), 1)
    joint = _calibrated(counts, support)

    others = probabilities.copy()
    others[np.arange(n), labels] = -1.0
    score = others.max(axis=1) - of_label
    # Of equal scores, which round to 1, the image with the less probable label comes first.
    order = np.lexsort((of_label, -score))
    expected = round(n * max(0.0, 1 - np.trace(joint)))
    index = order[: min(expected, int(np.sum(score > 0)))]
    return Suspects(index, others[index].argmax(axis=1), score[index], joint, thresholds)


def _calibrated(joint: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Scales the rows of the confident joint to the counts of the labels, and the sum to 1.

    A class none of whose images is confident counts as labelled correctly.
    """
    rows = joint.sum(axis=1)
    empty = rows == 0
    joint = joint + np.diag(np.where(empty, 1.0, 0.0))
    shares = joint / joint.sum(axis=1, keepdims=True)
    return shares * support[:, None] / support.sum()
