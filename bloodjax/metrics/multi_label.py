"""Metrics of probabilities of labels of which an image can have any number.

Conventions:
  * A label counts as predicted if its probability is above 0.5, unless thresholds are given.
  * `accuracy` is the mean over the labels of the share of images on which the label is right, which
    is the ACC of MedMNIST's evaluator. `subset_accuracy` is the share of images on which all labels
    are right.
  * `auc_ovr` is the mean over the labels of the area under the ROC curve, which is the AUC of
    MedMNIST's evaluator, and `map` the mean of their average precisions. Both are over the labels
    that some images have and others lack. A tie counts half in an area; the average precision is
    that of scikit-learn, without interpolation.
  * `f1_macro`, `precision_macro` and `recall_macro` are means over the labels, where 0/0 counts as
    0; `f1_micro`, `precision_at_50` and `recall_at_50` pool all labels. `balanced_accuracy` is the
    mean over the labels of (sensitivity + specificity) / 2, where both are defined.
  * `nll` (binary cross-entropy in nats), `brier` (squared error, 0..1) and `ece` (over 15 equal
    bins of the probability) are means over the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from bloodjax.metrics import resampling
from bloodjax.metrics.classification import (
    ECE_BINS,
    QUICK,
    SMALLEST_PROBABILITY,
    confidence_bin,
    in_bins,
    scores_of_class,
)
from bloodjax.metrics.curve_areas import CurveAreas
from bloodjax.metrics.intervals import wilson_intervals
from bloodjax.metrics.ratios import mean_of_defined, number_or_none, ratio

THRESHOLD = 0.5
Probabilities = Float[np.ndarray, "n labels"]
# 1 for each label that an image has and 0 for each other.
Labels = Int[np.ndarray, "n labels"]


def evaluate(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """Computes the metrics of `metrics.json` for images with several labels.

    Args:
      probabilities: Probability of each label of each image, 0..1.
      labels: 1 for each label that an image has and 0 for each other.
      classes: Names of the labels.
      bootstrap: Number of resamples of the images, at least 1.
      seed: Seed of the resamples.

    Returns:
      Metrics by name, as plain Python values: those of the module; "ci95", the 2.5th and 97.5th
      percentile of each over the resamples, None where these do not differ (that of `ece` is
      mirrored, and an accuracy of 0 or 1 has Wilson's); "per_class", for each label its number of
      images (`support`), area, average precision, precision, recall and F1 with intervals (Wilson's
      for the last three, the resamples' for the others); "confusion_matrix", for each label
      [[true negatives, false positives], [false negatives, true positives]]; "reliability", in
      bins of the probability. An undefined metric is None.

    Raises:
      ValueError: There are no images, the shapes differ, or a value is out of range.
    """
    _check(probabilities, labels)
    if len(classes) != probabilities.shape[1]:
        raise ValueError(f"{len(classes)} names for {probabilities.shape[1]} labels")
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, not {bootstrap}")
    statistics = _Statistics(probabilities, labels)
    n = len(labels)
    scalars, of_labels = statistics(np.ones((n, 1)))
    parts = [statistics(counts) for counts in resampling.draw_counts(n, bootstrap, seed)]
    samples = {name: np.concatenate([part[0][name] for part in parts]) for name in scalars}
    label_samples = {
        name: np.concatenate([part[1][name] for part in parts], axis=1) for name in of_labels
    }
    ci95 = {
        name: resampling.with_width(resampling.percentile_interval(each))
        for name, each in samples.items()
    }
    ci95["ece"] = resampling.reflected(ci95["ece"], float(scalars["ece"][0]))
    for name in ("accuracy", "subset_accuracy"):
        right = scalars[name] * n
        ci95[name] = ci95[name] or wilson_intervals(right, np.array([n]))[0].tolist()
    confusion = confusion_matrices(probabilities > THRESHOLD, labels)
    rows = {}
    for i, name in enumerate(classes):
        row = _row(confusion[i])
        for key, values in of_labels.items():
            row[key] = number_or_none(values[i, 0])
            row[f"{key}_ci95"] = resampling.percentile_interval(label_samples[key][i])
        rows[name] = row
    return {
        "task": "multi-label",
        "n": n,
        **{name: number_or_none(value[0]) for name, value in scalars.items()},
        "ci95": ci95,
        "per_class": rows,
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
        "reliability": reliability(probabilities, labels),
    }


def quick(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """The metrics that are logged every epoch, without intervals.

    Returns:
      `loss` (`nll`), `accuracy`, `balanced_accuracy`, `f1_macro`, `auc` (`auc_ovr`) and `ece`,
      equal to those of `evaluate`; without those that are undefined.

    Raises:
      ValueError: See `evaluate`.
    """
    _check(probabilities, labels)
    scalars, _ = _Statistics(probabilities, labels)(np.ones((len(labels), 1)))
    found = {name: float(scalars[source][0]) for name, source in QUICK.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def reliability(
    probabilities: Probabilities, labels: Labels, bins: int = ECE_BINS
) -> dict[str, list]:
    """Mean probability and share of positives in equal bins of the probability, of all labels.

    Returns:
      Lists of length `bins`, ascending: `count`, `confidence` (the mean probability) and `accuracy`
      (the share of positives); None for an empty bin.
    """
    _check(probabilities, labels)
    return in_bins(probabilities.ravel(), labels.ravel(), bins)


def confusion_matrices(
    predicted: Bool[np.ndarray, "n labels"], labels: Labels
) -> Int[np.ndarray, "labels 2 2"]:
    """[[true negatives, false positives], [false negatives, true positives]] of each label."""
    true = labels.astype(bool)
    cells = [[~true & ~predicted, ~true & predicted], [true & ~predicted, true & predicted]]
    return np.array([[cell.sum(axis=0) for cell in row] for row in cells]).transpose(2, 0, 1)


def fit_thresholds(probabilities: Probabilities, labels: Labels) -> Float[np.ndarray, " labels"]:
    """The threshold of each label with the highest F1 (Lipton et al. 2014, arXiv:1402.1892).

    It is halfway between the lowest probability that counts as predicted and the next lower one. A
    label that no image has, or all have, keeps 0.5.

    Args:
      probabilities: Probability of each label of images that the network was not trained on.
      labels: 1 for each label that an image has and 0 for each other.
    """
    _check(probabilities, labels)
    found = np.full(labels.shape[1], THRESHOLD)
    for i, (scores, true) in enumerate(zip(probabilities.T, labels.T, strict=True)):
        if not 0 < true.sum() < len(true):
            continue
        values, rank = np.unique(scores.astype(np.float64), return_inverse=True)
        positives = np.bincount(rank, true)[::-1].cumsum()[::-1]
        predicted = np.bincount(rank)[::-1].cumsum()[::-1]
        # The highest of equally good thresholds predicts the fewest labels.
        f1 = 2 * positives / (true.sum() + predicted)
        if values[0] == 0:  # no threshold is below it
            f1[0] = 0
        best = len(f1) - 1 - int(f1[::-1].argmax())
        below = values[best - 1] if best else 0.0
        found[i] = (values[best] + below) / 2
    return found


def at_thresholds(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    thresholds: Float[np.ndarray, " labels"],
) -> dict:
    """Metrics of the labels whose probabilities are above the thresholds.

    Returns:
      `f1_macro`, `f1_micro`, `subset_accuracy`, `accuracy`, and "per_class": for each label its
      `threshold`, `precision`, `recall` and `f1` with Wilson's intervals. None where undefined.
    """
    predicted = probabilities > thresholds
    right = predicted == labels.astype(bool)
    confusion = confusion_matrices(predicted, labels)
    hits, misses = confusion[:, 1, 1], confusion[:, 0, 1] + confusion[:, 1, 0]
    pooled = 2 * hits.sum() + misses.sum()
    rows = {
        name: {"threshold": float(threshold), **_row(matrix)}
        for name, threshold, matrix in zip(classes, thresholds, confusion, strict=True)
    }
    return {
        "accuracy": float(right.mean()),
        "subset_accuracy": float(right.all(axis=1).mean()),
        "f1_macro": float(np.nan_to_num(ratio(2 * hits, 2 * hits + misses)).mean()),
        "f1_micro": float(2 * hits.sum() / pooled) if pooled else None,
        "per_class": rows,
    }


def _row(matrix: Int[np.ndarray, "2 2"]) -> dict:
    """Precision, recall and F1 of a label, with Wilson intervals; None if undefined."""
    (_, wrong), (missed, hits) = matrix.tolist()
    return scores_of_class(hits, hits + wrong, hits + missed)


class _Statistics:
    """Every metric as a function of the number of times that each image counts."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray):
        p, true = probabilities.astype(np.float64), labels.astype(bool)
        n, self.num_labels = p.shape
        predicted = p > THRESHOLD
        right = predicted == true
        of_true = np.clip(np.where(true, p, 1 - p), SMALLEST_PROBABILITY, 1.0)
        self.additive = np.stack(
            [
                right.mean(axis=1),
                right.all(axis=1),
                -np.log(of_true).mean(axis=1),
                ((p - true) ** 2).mean(axis=1),
            ]
        )
        self.hits = (predicted & true).T.astype(np.float64)
        self.predicted, self.true = predicted.T.astype(np.float64), true.T.astype(np.float64)
        images = np.repeat(np.arange(n), self.num_labels)
        # Each label has its own bins, so that errors of two labels do not cancel out.
        bins = np.tile(np.arange(self.num_labels), n) * ECE_BINS
        bins += confidence_bin(p.ravel(), ECE_BINS)
        shape = (self.num_labels * ECE_BINS, n)
        self.gaps = scipy.sparse.csr_array(((true - p).ravel(), (bins, images)), shape=shape)
        self.ranked = [CurveAreas(scores, one) for scores, one in zip(p.T, true.T, strict=True)]

    def __call__(self, counts: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Metrics of r resamples, given `counts` [n, r]: of all labels [r], and of each one."""
        total = counts.sum(axis=0)
        accuracy, subset, nll, brier = self.additive @ counts / total
        hits, predicted, true = (x @ counts for x in (self.hits, self.predicted, self.true))
        precision, recall = ratio(hits, predicted), ratio(hits, true)
        f1 = ratio(2 * hits, predicted + true)
        specificity = ratio(total - predicted - true + hits, total - true)
        curves = [ranked(counts) for ranked in self.ranked]
        area, average = (np.stack(each) for each in zip(*curves, strict=True))
        scalars = {
            "accuracy": accuracy,
            "subset_accuracy": subset,
            "balanced_accuracy": mean_of_defined((recall + specificity) / 2),
            "precision_macro": np.nan_to_num(precision).mean(axis=0),
            "recall_macro": np.nan_to_num(recall).mean(axis=0),
            "f1_macro": np.nan_to_num(f1).mean(axis=0),
            "f1_micro": ratio(2 * hits.sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)),
            "auc_ovr": mean_of_defined(area),
            "map": mean_of_defined(average),
            "nll": nll,
            "ece": np.abs(self.gaps @ counts).sum(axis=0) / (total * self.num_labels),
            "brier": brier,
            "precision_at_50": np.nan_to_num(ratio(hits.sum(axis=0), predicted.sum(axis=0))),
            "recall_at_50": ratio(hits.sum(axis=0), true.sum(axis=0)),
        }
        return scalars, {"auc": area, "average_precision": average}


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    if len(labels) == 0:
        raise ValueError("no images to evaluate")
    if probabilities.shape != labels.shape:
        raise ValueError(f"probabilities {probabilities.shape} for labels {labels.shape}")
    # This form rejects NaN too.
    if not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError("probabilities must be in 0..1")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
