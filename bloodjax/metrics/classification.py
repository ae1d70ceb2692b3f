"""Accuracy and calibration of a classifier's probabilities, with confidence intervals.

Conventions, where the field has several:
  * Macro averages are over the classes that occur among labels or predictions. As in scikit-learn,
    a class whose ratio is 0/0 counts as 0. Balanced accuracy is over the classes with labels.
  * `auc_ovr` is the mean one-versus-rest area under the ROC curve, over the classes that have both
    positives and negatives. A tie counts half.
  * `nll` is in nats; probabilities below 1e-7 count as 1e-7, as in Keras.
  * `ece` is the expected calibration error of the top label over 15 equal bins of confidence,
    (low, high] (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
  * `brier` is the sum form of Brier (1950), 0..2: mean over images of sum_c (p_c - y_c)^2.
  * `precision_at_50` and `recall_at_50` are Keras's `Precision` and `Recall` at threshold 0.5 over
    one-hot labels, all classes pooled. Without any positive prediction, precision is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
from jaxtyping import Float, Int, Shaped

from bloodjax.metrics import resampling
from bloodjax.metrics.curve_areas import RocArea
from bloodjax.metrics.intervals import mean_interval, wilson_interval
from bloodjax.metrics.ratios import mean_of_defined, number_or_none, ratio

ECE_BINS = 15
SMALLEST_PROBABILITY = 1e-7
# A class with fewer images is pointed out: if all are classified correctly, the 95 % interval of
# its recall is still wider than 16 points.
FEW_IMAGES = 20

# Name in the log of an epoch -> name in `metrics.json`.
QUICK = {
    "loss": "nll",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1_macro",
    "auc": "auc_ovr",
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
    """Computes the metrics of `metrics.json`.

    `ci95` has the 2.5th and 97.5th percentile over `bootstrap` resamples of the images; None where
    the resamples do not differ. That of `accuracy` is Wilson's, because percentiles are too narrow
    near 1: of 1,000 images with one error, they are 0.997 and 1. That of `ece` is mirrored
    (`resampling.reflected`), because noise in the bins can only increase the metric. The intervals
    in `per_class` are Wilson's, which remain valid for classes of few images (see
    `wilson_interval`). A class of three images that are all correct would add nothing to the width
    of the bootstrap's interval of a mean recall, so those of `balanced_accuracy` and `recall_macro`
    are extended to `mean_interval`.

    Args:
      probabilities: Class probabilities of each image; rows sum to 1.
      labels: True class indices.
      classes: Class names in label order.
      bootstrap: Number of resamples, at least 1.
      seed: Seed of the resamples. The same input and seed give the same intervals.

    Returns:
      Metrics by name, as plain Python values. An undefined metric is None, never NaN.

    Raises:
      ValueError: There are no images, a label is out of range, a row is not a distribution, or the
        number of class names is not the number of columns.
    """
    _check(probabilities, labels)
    n, num_classes = probabilities.shape
    if len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} columns of probabilities")
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, not {bootstrap}")
    statistics = Statistics(probabilities, labels)
    scalars = statistics(np.ones((n, 1)))
    samples = statistics.resampled(bootstrap, seed)
    confusion = statistics.confusion
    rows = of_classes(confusion)
    ci95 = {
        name: resampling.with_width(resampling.percentile_interval(each))
        for name, each in samples.items()
    }
    ci95["ece"] = resampling.reflected(ci95["ece"], float(scalars["ece"][0]))
    ci95["accuracy"] = list(wilson_interval(int(np.trace(confusion)), n))
    return {
        "n": n,
        **{name: number_or_none(value[0]) for name, value in scalars.items()},
        "ci95": with_mean_recalls(ci95, rows),
        "per_class": dict(zip(classes, rows, strict=True)),
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
        "reliability": reliability(probabilities, labels),
    }


def quick(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Computes the metrics that are logged every epoch, without intervals.

    Returns:
      `loss` (`nll`), `accuracy`, `balanced_accuracy`, `f1_macro`, `auc` (`auc_ovr`) and `ece`,
      equal to those of `evaluate`. There is no `auc` if all images are of one class.

    Raises:
      ValueError: See `evaluate`.
    """
    _check(probabilities, labels)
    scalars = Statistics(probabilities, labels)(np.ones((len(labels), 1)))
    found = {name: float(scalars[source][0]) for name, source in QUICK.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def reliability(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    bins: int = ECE_BINS,
) -> dict[str, list]:
    """Confidence and accuracy in equal bins of the top label's probability.

    Args:
      probabilities: Class probabilities of each image; rows sum to 1.
      labels: True class indices.
      bins: Number of bins.

    Returns:
      Lists of length `bins`, by ascending confidence: `count`, and the mean `confidence` and
      `accuracy` of the bin's images (None for an empty bin).

    Raises:
      ValueError: See `evaluate`.
    """
    _check(probabilities, labels)
    return in_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def in_bins(
    confidence: Float[np.ndarray, " n"], right: Shaped[np.ndarray, " n"], bins: int
) -> dict[str, list]:
    """What `reliability` returns, of predictions with these confidences in 0..1.

    Args:
      confidence: Confidence of each prediction.
      right: Whether each is right, bool, or 0 and 1.
      bins: Number of bins.
    """
    index = confidence_bin(confidence, bins)
    count = np.bincount(index, minlength=bins)
    sums = {"confidence": confidence, "accuracy": right}
    means = {k: ratio(np.bincount(index, v, minlength=bins), count) for k, v in sums.items()}
    return {
        "count": count.tolist(),
        **{k: [number_or_none(v) for v in row] for k, row in means.items()},
    }


def few_images(per_class: Mapping[str, Mapping]) -> str:
    """Names the classes of 1 to 19 images, with the interval of each recall; "" if there are none.

    Args:
      per_class: `per_class` of `evaluate`.
    """
    shown = []
    for name, row in per_class.items():
        if 0 < row["support"] < FEW_IMAGES:
            low, high = row["recall_ci95"]
            images = "1 image" if row["support"] == 1 else f"{row['support']} images"
            shown.append(f"{name} ({images}, recall {low:.2f} to {high:.2f})")
    return ", ".join(shown)


class Statistics:
    """Every scalar metric as a function of the number of times that each unit counts.

    A unit is what is resampled: an image, or a group of images. Its contribution to a metric is the
    same in every resample, so it is tabulated once. A resample is then a weighted sum over the
    table; for the original set, every weight is 1.

    Attributes:
      num_classes: Number of classes.
      units: Number of units.
    """

    def __init__(
        self,
        probabilities: Float[np.ndarray, "n classes"],
        labels: Int[np.ndarray, " n"],
        unit: Int[np.ndarray, " n"] | None = None,
    ):
        """Tabulates the contributions.

        Args:
          probabilities: Class probabilities of each image; rows sum to 1.
          labels: True class indices.
          unit: Number of the unit of each image, 0 to `units` - 1; by default each image is one.
        """
        probabilities = probabilities.astype(np.float64)
        self.num_classes = probabilities.shape[1]
        unit = np.arange(len(labels)) if unit is None else unit
        self.units = int(unit.max()) + 1
        predicted = probabilities.argmax(axis=1)
        confidence = probabilities.max(axis=1)
        true = np.arange(self.num_classes) == labels[:, None]
        positive = probabilities > 0.5
        one = np.ones(len(labels))

        def by_unit(row: np.ndarray, values: np.ndarray, size: int) -> scipy.sparse.csr_array:
            return scipy.sparse.csr_array((values, (row, unit)), shape=(size, self.units))

        self.cells = by_unit(labels * self.num_classes + predicted, one, self.num_classes**2)
        gap = (predicted == labels) - confidence
        self.gaps = by_unit(confidence_bin(confidence, ECE_BINS), gap, ECE_BINS)
        nll = -np.log(np.clip(probabilities[true], SMALLEST_PROBABILITY, 1.0))
        brier = ((probabilities - true) ** 2).sum(axis=1)
        hits = (positive & true).sum(axis=1)
        additive = np.stack([one, nll, brier, hits, positive.sum(axis=1)])
        self.additive = np.stack([np.bincount(unit, each, self.units) for each in additive])
        self.ranked = [
            RocArea(p, y, unit, self.units)
            for p, y in zip(probabilities.T, true.T, strict=True)
            if y.any()
        ]

    @property
    def confusion(self) -> np.ndarray:
        """Number of images, int [true, predicted]."""
        cells = self.cells.sum(axis=1).astype(int)
        return cells.reshape(self.num_classes, self.num_classes)

    def resampled(self, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """Metrics of `resamples` resamples of the units: name -> [resamples]."""
        rows = max(self.units, self.num_classes**2, *(len(ranked) for ranked in self.ranked))
        draws = resampling.draw_counts(self.units, resamples, seed, rows=rows)
        parts = [self(counts) for counts in draws]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of r resamples, given `counts` [units, r]: name -> [r], NaN if undefined."""
        confusion = (self.cells @ counts).reshape(self.num_classes, self.num_classes, -1)
        total, nll, brier, hits, positives = self.additive @ counts
        areas = np.stack([ranked.area(counts) for ranked in self.ranked])
        return {
            **_from_confusion(confusion),
            "auc_ovr": mean_of_defined(areas),
            "nll": nll / total,
            "ece": np.abs(self.gaps @ counts).sum(axis=0) / total,
            "brier": brier / total,
            "precision_at_50": np.nan_to_num(ratio(hits, positives)),
            "recall_at_50": hits / total,
        }


def _from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics that are functions of confusion matrices [true, predicted, r]."""
    hits = np.einsum("iir->ir", confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = support + predicted > 0
    ratios = {
        "precision_macro": ratio(hits, predicted),
        "recall_macro": ratio(hits, support),
        "f1_macro": ratio(2 * hits, support + predicted),
    }
    return {
        "accuracy": hits.sum(axis=0) / support.sum(axis=0),
        "balanced_accuracy": mean_of_defined(ratios["recall_macro"]),
        **{
            name: np.nan_to_num(values).sum(axis=0) / present.sum(axis=0)
            for name, values in ratios.items()
        },
    }


def of_classes(confusion: Int[np.ndarray, "classes classes"]) -> list[dict]:
    """`scores_of_class` of each class, given numbers of images [true, predicted]."""
    hits, predicted, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return [
        scores_of_class(*counts)
        for counts in zip(hits.tolist(), predicted.tolist(), support.tolist(), strict=True)
    ]


def scores_of_class(hits: int, predicted: int, support: int) -> dict:
    """`support`, precision, recall and F1 with Wilson intervals, as in `per_class` of `evaluate`.

    Args:
      hits: Number of images of the class that are predicted as it.
      predicted: Number of images that are predicted as it.
      support: Number of images of it.

    Returns:
      Scores by name; those that are undefined are None.
    """
    row: dict = {"support": support}
    for name, trials in (("precision", predicted), ("recall", support)):
        row[name] = hits / trials if trials else None
        row[f"{name}_ci95"] = list(wilson_interval(hits, trials)) if trials else None
    # F1 = 2J / (1 + J) for the proportion J = hits / union, so J's interval gives F1's.
    union = support + predicted - hits
    row["f1"] = 2 * hits / (support + predicted) if union else None
    row["f1_ci95"] = [2 * j / (1 + j) for j in wilson_interval(hits, union)] if union else None
    return row


def with_mean_recalls(
    ci95: dict[str, list[float] | None], rows: Sequence[Mapping]
) -> dict[str, list[float] | None]:
    """`ci95` in which the intervals of mean recalls also contain `mean_interval`.

    Args:
      ci95: Metric -> its interval.
      rows: `scores_of_class` of each class.
    """
    scored = [row for row in rows if row["support"]]
    present = sum(1 for row in rows if row["f1"] is not None)
    intervals = [row["recall_ci95"] for row in scored]
    wider = {}
    for name, count in (("balanced_accuracy", len(scored)), ("recall_macro", present)):
        limits = mean_interval([row["recall"] for row in scored], intervals, count)
        low, high = ci95[name] or limits
        wider[name] = [min(low, limits[0]), max(high, limits[1])]
    return {**ci95, **wider}


def confidence_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Index of the bin (low, high] of each confidence in 0..1."""
    # In float32, a confidence just above a limit could be rounded down to it.
    scaled = confidence.astype(np.float64) * bins
    return np.clip(np.ceil(scaled).astype(int) - 1, 0, bins - 1)


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    n, num_classes = probabilities.shape
    if n == 0:
        raise ValueError("no images to evaluate")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} for {num_classes} classes")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # This form rejects NaN too.
    if not (probabilities.min() >= 0 and np.abs(sums - 1).max() <= 1e-3):
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
