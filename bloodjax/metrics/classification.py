"""What a classifier's probabilities are worth: accuracy, calibration, and how sure we are of each.

Nothing here knows of models: probabilities and labels in, plain numbers out.

Conventions, where the field has several:
  * Macro averages run over the classes present among labels or predictions, and count a class whose
    ratio is 0/0 as 0, as scikit-learn does. Balanced accuracy runs over the classes with labels.
  * `auc_ovr` is the mean one-versus-rest area under the ROC curve over the classes that have both
    positives and negatives, ties counted half.
  * `nll` is in nats; probabilities below 1e-7 count as 1e-7, as in Keras.
  * `ece` is the expected calibration error of the top label over 15 equal bins of confidence,
    (low, high] (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
  * `brier` is the sum form of Brier (1950), 0..2: mean over images of sum_c (p_c - y_c)^2.
  * `precision_at_50` and `recall_at_50` are Keras's `Precision` and `Recall` at threshold 0.5 over
    one-hot labels, all classes pooled; the precision of no claim at all is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

ECE_BINS = 15
SMALLEST_PROBABILITY = 1e-7
RESAMPLED_AT_ONCE = 2**22  # float64 entries of the largest table: 32 MB

_QUICK = {
    "loss": "nll",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1_macro",
    "ece": "ece",
}


def evaluate(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """All of `metrics.json`: plain Python values, None where a figure is undefined, never NaN.

    `ci95` holds the 2.5th and 97.5th percentile over `bootstrap` resamples of the images. It
    shrinks to a point where every image is right, and lies high for `ece`, which noise in the
    bins can only raise. The intervals in `per_class` are Wilson's, which stay honest for classes
    of few images (see `wilson_interval`).

    Args:
      probabilities: each image's distribution over the classes; rows sum to 1.
      labels: true class indices.
      classes: class names in label order.
      bootstrap: number of resamples, at least 1.
      seed: of the resamples; the same input and seed give the same intervals.

    Raises:
      ValueError: no images, a label out of range, rows that are no distributions, or a number of
        class names that differs from the number of columns.
    """
    _check(probabilities, labels)
    n, num_classes = probabilities.shape
    if len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} columns of probabilities")
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, not {bootstrap}")
    statistics = _Statistics(probabilities, labels)
    scalars = statistics(np.ones((n, 1)))
    at_once = max(1, RESAMPLED_AT_ONCE // max(n, num_classes**2))
    parts = [statistics(counts) for counts in _resamples(n, bootstrap, at_once, seed)]
    draws = {name: np.concatenate([part[name] for part in parts]) for name in scalars}
    confusion = statistics.confusion
    return {
        "n": n,
        **{name: _number(value[0]) for name, value in scalars.items()},
        "ci95": {name: _percentiles(values) for name, values in draws.items()},
        "per_class": dict(zip(classes, _per_class(confusion), strict=True)),
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
        "reliability": reliability(probabilities, labels),
    }


def quick(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """The figures logged after every epoch: loss (nll), accuracy, balanced_accuracy, f1_macro, ece.

    The same numbers as `evaluate`, without intervals. Raises ValueError as it does.
    """
    _check(probabilities, labels)
    scalars = _Statistics(probabilities, labels)(np.ones((len(labels), 1)))
    return {name: float(scalars[source][0]) for name, source in _QUICK.items()}


def reliability(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    bins: int = ECE_BINS,
) -> dict[str, list]:
    """Confidence against accuracy in `bins` equal bins of the top label's probability.

    Returns:
      Lists of length `bins`, from the lowest confidence to the highest: `count`, and the mean
      `confidence` and `accuracy` of the bin's images, None in an empty bin.
    """
    _check(probabilities, labels)
    confidence = probabilities.max(axis=1)
    index = _confidence_bin(confidence, bins)
    count = np.bincount(index, minlength=bins)
    sums = {
        "confidence": np.bincount(index, confidence, minlength=bins),
        "accuracy": np.bincount(index, probabilities.argmax(axis=1) == labels, minlength=bins),
    }
    return {
        "count": count.tolist(),
        **{name: [_number(v) for v in _ratio(total, count)] for name, total in sums.items()},
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the bootstrap it keeps its width at 0 and 1: 20 right of 20 gives (0.84, 1.0).
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = 1.959964
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


class _Statistics:
    """Every scalar metric as a function of how often each image counts.

    What one image adds to a metric never changes, so it is tabulated once; a resample is then a
    weighted sum over that table, and the metric on the set itself is the one where each counts 1.
    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray):
        probabilities = probabilities.astype(np.float64)
        self.num_classes = probabilities.shape[1]
        predicted = probabilities.argmax(axis=1)
        confidence = probabilities.max(axis=1)
        true = np.arange(self.num_classes) == labels[:, None]
        claimed = probabilities > 0.5
        one = np.ones(len(labels))

        self.cells = _sum_by(labels * self.num_classes + predicted, one, self.num_classes**2)
        gap = (predicted == labels) - confidence
        self.gaps = _sum_by(_confidence_bin(confidence, ECE_BINS), gap, ECE_BINS)
        nll = -np.log(np.clip(probabilities[true], SMALLEST_PROBABILITY, 1.0))
        brier = ((probabilities - true) ** 2).sum(axis=1)
        hits = (claimed & true).sum(axis=1)
        self.additive = np.stack([nll, brier, hits, claimed.sum(axis=1)])
        self.ranked = [
            _sums_by_rank(p, y) for p, y in zip(probabilities.T, true.T, strict=True) if y.any()
        ]

    @property
    def confusion(self) -> np.ndarray:
        """Counts of images, int [true, predicted]."""
        cells = self.cells.sum(axis=1).astype(int)
        return cells.reshape(self.num_classes, self.num_classes)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of r resamples from `counts` [n, r]: name -> [r], NaN where undefined."""
        total = counts.sum(axis=0)
        confusion = (self.cells @ counts).reshape(self.num_classes, self.num_classes, -1)
        nll, brier, hits, claims = self.additive @ counts
        areas = np.stack([_area(*sums, counts) for sums in self.ranked])
        return {
            **_from_confusion(confusion),
            "auc_ovr": _mean_of_defined(areas),
            "nll": nll / total,
            "ece": np.abs(self.gaps @ counts).sum(axis=0) / total,
            "brier": brier / total,
            "precision_at_50": np.nan_to_num(_ratio(hits, claims)),
            "recall_at_50": hits / total,
        }


def _from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics that confusion matrices [true, predicted, r] determine."""
    hits = np.einsum("iir->ir", confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = support + predicted > 0
    ratios = {
        "precision_macro": _ratio(hits, predicted),
        "recall_macro": _ratio(hits, support),
        "f1_macro": _ratio(2 * hits, support + predicted),
    }
    return {
        "accuracy": hits.sum(axis=0) / support.sum(axis=0),
        "balanced_accuracy": _mean_of_defined(ratios["recall_macro"]),
        **{
            name: np.nan_to_num(values).sum(axis=0) / present.sum(axis=0)
            for name, values in ratios.items()
        },
    }


def _per_class(confusion: np.ndarray) -> list[dict]:
    """Precision, recall and F1 of each class, with Wilson's intervals; None where undefined."""
    rows = []
    for index, support in enumerate(confusion.sum(axis=1).tolist()):
        hits, predicted = int(confusion[index, index]), int(confusion[:, index].sum())
        row = {"support": support}
        for name, trials in (("precision", predicted), ("recall", support)):
            row[name] = hits / trials if trials else None
            row[f"{name}_ci95"] = list(wilson_interval(hits, trials)) if trials else None
        # F1 = 2J / (1 + J) for J = hits / union, a proportion: its interval carries over.
        union = support + predicted - hits
        row["f1"] = 2 * hits / (support + predicted) if union else None
        row["f1_ci95"] = [2 * j / (1 + j) for j in wilson_interval(hits, union)] if union else None
        rows.append(row)
    return rows


def _sums_by_rank(
    scores: np.ndarray, positive: np.ndarray
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Tables that sum the positives and the negatives of each distinct score, in rising order."""
    values, rank = np.unique(scores, return_inverse=True)
    return _sum_by(rank, positive, len(values)), _sum_by(rank, ~positive, len(values))


def _area(
    positives: scipy.sparse.csr_array, negatives: scipy.sparse.csr_array, counts: np.ndarray
) -> np.ndarray:
    """Area under the ROC curve of each resample: P(positive outranks negative), ties half."""
    up, down = positives @ counts, negatives @ counts
    below = np.cumsum(down, axis=0) - down / 2
    return _ratio((up * below).sum(axis=0), up.sum(axis=0) * down.sum(axis=0))


def _sum_by(group: np.ndarray, values: np.ndarray, size: int) -> scipy.sparse.csr_array:
    """The matrix [size, n] whose product with counts [n, r] sums `values` in each group."""
    columns = np.arange(len(group))
    return scipy.sparse.csr_array(
        (values.astype(np.float64), (group, columns)), shape=(size, len(group))
    )


def _resamples(n: int, resamples: int, at_once: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in each resample: [n, r], r up to `at_once`."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        drawn = rng.integers(n, size=(n, r)) * r + np.arange(r)
        yield np.bincount(drawn.ravel(), minlength=n * r).reshape(n, r).astype(np.float64)


def _confidence_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Index of the bin (low, high] of each confidence in 0..1."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    return _ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def _percentiles(values: np.ndarray) -> list[float] | None:
    """The central 95 % of the resamples in which the metric is defined."""
    defined = values[np.isfinite(values)]
    return np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    n, num_classes = probabilities.shape
    if n == 0:
        raise ValueError("no images to evaluate")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} for {num_classes} classes")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Written so that NaN fails too.
    if not (probabilities.min() >= 0 and np.abs(sums - 1).max() <= 1e-3):
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
