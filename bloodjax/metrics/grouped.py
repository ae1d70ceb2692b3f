"""Metrics of images that come in groups, such as patients or slides.

Images of one group resemble each other, so n images of g groups say less about a new group than n
independent images would. The functions here resample groups instead of images, and score each
group. `group_predictions` has the answers that the images of a group give together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from bloodjax.metrics import classification, group_predictions
from bloodjax.metrics.group_predictions import GroupPredictions
from bloodjax.metrics.intervals import wilson_intervals
from bloodjax.metrics.resampling import (
    effective_number,
    expanded_percentile_interval,
    reflected,
    resampled_means,
    with_width,
)

# With fewer groups (see `effective_number`) the page and the log warn of the interval.
FEW_GROUPS = 10
_FAMILY_ERROR = 0.05  # of the tests for groups that are worse than the rest


def evaluate(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    trained_on: Bool[np.ndarray, " n"] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict | None:
    """Computes the entry "groups" of `metrics.json`.

    Args:
      probabilities: Class probabilities of each image; rows sum to 1.
      labels: True class indices.
      groups: Key of each image's group, "" for an image without one.
      classes: Class names in label order.
      trained_on: Whether each image is of a group that the classifier was trained on. None: no
        image is known to be.
      bootstrap: Number of resamples, at least 1.
      seed: Seed of the resamples. The same input and seed give the same intervals.

    Returns:
      None if no image has a group, otherwise plain Python values; an undefined one is None:
      "n": number of groups; "images" and "ungrouped": images with and without a group;
      "sizes": "min", "median" and "max" of the numbers of images of a group;
      "effective": number of groups of equal size that would say as much
      (`resampling.effective_number`);
      "few": whether "effective" is below `FEW_GROUPS`;
      "trained_on": if there are any, the "groups" that were trained on, their number of "images",
      and under "others" the "n", "accuracy", "balanced_accuracy" and "ci95" of the other images.
      If no group has several images, that is all. Otherwise also
      "ci95": metric of all images -> interval over resamples of the groups
      (`resampling.expanded_percentile_interval`); an image without a group is a group of its own;
      "design_effect": variance of the accuracy over resamples of groups, divided by that of
      independent images;
      "accuracy": "mean", "mean_ci95", "sd", "min", "q25", "median", "q75" and "max" of the
      accuracies of the groups, each of which counts the same;
      "worst": "group", "n", "accuracy" and "accuracy_ci95" of the one with the lowest accuracy;
      "worse": names of the groups that are classified worse than all images, the worst first: the
      binomial test of their mistakes is significant at 5 % after Holm's correction;
      "together": the answers of whole groups (`group_predictions.score_answers`);
      "shares": the share of each class in a group (`group_predictions.score_shares`);
      "per_group": name -> "n", "accuracy" and "accuracy_ci95", the worst first, and as class names
      or None "label", "majority" and "mean_probability" (`GroupPredictions`).

    Raises:
      ValueError: See `classification.evaluate`.
    """
    names, group_of = group_predictions.index_groups(groups)
    if not names:
        return None
    known = group_of >= 0
    # What is resampled: a group, or an image without a group.
    unit = np.where(known, group_of, len(names) + np.cumsum(~known) - 1)
    unit_sizes = np.bincount(unit)
    sizes = unit_sizes[: len(names)]
    resampled = {"bootstrap": bootstrap, "seed": seed}
    effective = effective_number(unit_sizes)
    content = {
        "n": len(names),
        "images": int(known.sum()),
        "ungrouped": int((~known).sum()),
        "sizes": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "max": int(sizes.max()),
        },
        "effective": effective,
        "few": effective < FEW_GROUPS,
    }
    if trained_on is not None and trained_on.any():
        content["trained_on"] = {
            "groups": [names[i] for i in np.unique(group_of[trained_on & known]).tolist()],
            "images": int(trained_on.sum()),
            "others": _score_others(probabilities, labels, unit, ~trained_on, **resampled),
        }
    if sizes.max() > 1:
        predictions = GroupPredictions(probabilities[known], labels[known], group_of[known])
        _, samples, intervals = _score_resampled(probabilities, labels, unit, **resampled)
        correct = probabilities.argmax(axis=1) == labels
        content |= {
            "ci95": intervals,
            "design_effect": _design_effect(samples["accuracy"], correct),
            "accuracy": _spread(predictions.accuracy, **resampled),
            **_score_each(predictions, names, classes, float(correct.mean())),
            "together": group_predictions.score_answers(predictions, classes, **resampled),
            "shares": group_predictions.score_shares(predictions, classes, **resampled),
        }
    return content


def _score_each(
    predictions: GroupPredictions, names: Sequence[str], classes: Sequence[str], overall: float
) -> dict[str, object]:
    """The entries "worst", "worse" and "per_group", given the accuracy of all images."""
    accuracy, sizes = predictions.accuracy, predictions.sizes
    hits = np.rint(accuracy * sizes).astype(int)
    limits = wilson_intervals(hits, sizes)
    is_worse = _is_worse(hits, sizes, overall)
    order = np.lexsort((-sizes, accuracy)).tolist()
    rows = {
        names[i]: {
            "n": int(sizes[i]),
            "accuracy": float(accuracy[i]),
            "accuracy_ci95": limits[i].tolist(),
        }
        for i in order
    }
    worst = names[order[0]]
    return {
        "worst": {"group": worst, **rows[worst]},
        "worse": [names[i] for i in order if is_worse[i]],
        "per_group": {names[i]: rows[names[i]] | predictions.answers(i, classes) for i in order},
    }


def _score_resampled(
    probabilities: np.ndarray, labels: np.ndarray, unit: np.ndarray, *, bootstrap: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, list[float] | None]]:
    """Metrics of images that are resampled by `unit`: values, resamples, intervals."""
    statistics = classification.Statistics(probabilities, labels, unit)
    sizes = np.bincount(unit)
    values = {name: float(v[0]) for name, v in statistics(np.ones((len(sizes), 1))).items()}
    samples = statistics.resampled(bootstrap, seed)
    intervals = {
        name: with_width(expanded_percentile_interval(v, sizes)) for name, v in samples.items()
    }
    correct = probabilities.argmax(axis=1) == labels
    accuracy = np.bincount(unit, correct) / sizes
    if len(sizes) > 1:
        # Images of groups say no less of a recall than as many single ones would.
        rows = classification.of_classes(statistics.confusion)
        intervals = classification.with_mean_recalls(intervals, rows)
    intervals["ece"] = reflected(intervals["ece"], values["ece"])
    intervals["accuracy"] = _accuracy_interval(samples["accuracy"], accuracy, sizes)
    return values, samples, intervals


def _score_others(
    probabilities: np.ndarray,
    labels: np.ndarray,
    unit: np.ndarray,
    others: np.ndarray,
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, object] | None:
    """Metrics of the images `others`; None if there are none."""
    if not others.any():
        return None
    _, unit = np.unique(unit[others], return_inverse=True)
    values, _, intervals = _score_resampled(
        probabilities[others], labels[others], unit, bootstrap=bootstrap, seed=seed
    )
    names = ("accuracy", "balanced_accuracy")
    return {
        "n": int(others.sum()),
        **{name: values[name] for name in names},
        "ci95": {name: intervals[name] for name in names},
    }


def _accuracy_interval(
    samples: Float[np.ndarray, " r"],
    accuracy: Float[np.ndarray, " g"],
    sizes: Int[np.ndarray, " g"],
) -> list[float] | None:
    """The 95 % interval of the accuracy, given its values in resamples of groups.

    Resamples of groups of the same accuracy show no width. Its interval is then Wilson's, with a
    trial for each group.
    """
    if len(accuracy) > 1 and np.ptp(accuracy) == 0:
        return wilson_intervals(accuracy.sum(keepdims=True), np.array([len(accuracy)]))[0].tolist()
    return expanded_percentile_interval(samples, sizes)


def _is_worse(hits: np.ndarray, sizes: np.ndarray, overall: float) -> np.ndarray:
    """Which groups have fewer hits than the accuracy of all images makes plausible (Holm 1979)."""
    p = scipy.stats.binom.cdf(hits, sizes, overall)
    order = np.argsort(p, kind="stable")
    passed = p[order] <= _FAMILY_ERROR / np.arange(len(p), 0, -1)
    worse = np.zeros(len(p), bool)
    worse[order] = np.logical_and.accumulate(passed)
    return worse & (hits / sizes < overall)


def _design_effect(accuracies: np.ndarray, correct: np.ndarray) -> float | None:
    accuracy = correct.mean()
    variance = accuracy * (1 - accuracy) / len(correct)
    return float(accuracies.var() / variance) if variance > 0 else None


def _spread(accuracy: np.ndarray, *, bootstrap: int, seed: int) -> dict[str, object]:
    """Mean and spread of the accuracies of groups that count the same."""
    samples = resampled_means(accuracy[:, None], bootstrap, seed)[:, 0]
    quantiles = np.quantile(accuracy, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "mean": float(accuracy.mean()),
        "mean_ci95": _accuracy_interval(samples, accuracy, np.ones(len(accuracy), int)),
        "sd": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None,
        **dict(zip(("min", "q25", "median", "q75", "max"), quantiles, strict=True)),
    }
