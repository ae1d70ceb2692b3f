"""Metrics of images that come in groups, such as patients or slides.

Images of one group resemble each other, so n images of g groups say less about a new group than n
independent images would. The functions here resample groups instead of images, score each group,
and score the answers that the images of a group give together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from bloodjax.metrics import classification

# With fewer groups (see `effective_number`) the interval is pointed out as hardly worth anything.
FEW_GROUPS = 10
_NORMAL_95 = 1.959963984540054  # 97.5th percentile of the normal distribution
_FAMILY_ERROR = 0.05  # of the tests for groups that are worse than the rest
_TOGETHER = ("accuracy", "balanced_accuracy", "f1_macro", "auc_ovr")

# Index into the names of the groups for each image, -1 for an image without a group.
GroupOf = Int[np.ndarray, " n"]
Names = tuple[str, ...]


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
      trained_on: Whether each image is of a group that the classifier was trained on. None: of no
        image is that known to be so.
      bootstrap: Number of resamples, at least 1.
      seed: Seed of the resamples. The same input and seed give the same intervals.

    Returns:
      None if no image has a group, otherwise plain Python values; an undefined one is None:
      "n": number of groups; "images" and "ungrouped": images with and without a group;
      "sizes": "min", "median" and "max" of the numbers of images of a group;
      "effective": number of groups of equal size that would say as much (`effective_number`);
      "few": whether "effective" is below `FEW_GROUPS`;
      "trained_on": if there are any, the "groups" that were trained on, their number of "images",
      and under "others" the "n", "accuracy", "balanced_accuracy" and "ci95" of the other images.
      If no group has several images, that is all. Otherwise also
      "ci95": metric -> interval over resamples of the groups (`interval`), of the metrics of all
      images; an image without a group is a group of its own;
      "design_effect": variance of the accuracy over resamples of groups, divided by that of
      independent images;
      "accuracy": "mean", "mean_ci95", "sd", "min", "q25", "median", "q75" and "max" of the
      accuracies of the groups, of which each counts the same;
      "worst": "group", "n", "accuracy" and "accuracy_ci95" of the one with the lowest accuracy;
      "worse": names of the groups that are classified worse than all images, the worst first: the
      binomial test of their mistakes is significant at 5 % after Holm's correction;
      "together": the answers of whole groups (`score_together`);
      "shares": the share of each class in a group (`score_shares`);
      "per_group": name -> "n", "accuracy" and "accuracy_ci95", the worst first, and as class names
      or None "label", "majority" and "mean_probability" (`Together`).

    Raises:
      ValueError: See `classification.evaluate`.
    """
    names, group_of = index(groups)
    if not names:
        return None
    known = group_of >= 0
    unit = np.where(known, group_of, len(names) + np.cumsum(~known) - 1)
    every = np.bincount(unit)
    sizes = every[: len(names)]
    scored = {"bootstrap": bootstrap, "seed": seed}
    content = {
        "n": len(names),
        "images": int(known.sum()),
        "ungrouped": int((~known).sum()),
        "sizes": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "max": int(sizes.max()),
        },
        "effective": effective_number(every),
        "few": effective_number(every) < FEW_GROUPS,
    }
    if trained_on is not None and trained_on.any():
        content["trained_on"] = {
            "groups": [names[i] for i in np.unique(group_of[trained_on & known]).tolist()],
            "images": int(trained_on.sum()),
            "others": _score_others(probabilities, labels, unit, ~trained_on, **scored),
        }
    if sizes.max() > 1:
        together = Together(probabilities[known], labels[known], group_of[known])
        _, samples, intervals = _resample(probabilities, labels, unit, **scored)
        correct = probabilities.argmax(axis=1) == labels
        content |= {
            "ci95": intervals,
            "design_effect": _design_effect(samples["accuracy"], correct),
            "accuracy": _spread(together.accuracy, **scored),
            **_score_each(together, names, classes, float(correct.mean())),
            "together": score_together(together, classes, **scored),
            "shares": score_shares(together, classes, **scored),
        }
    return content


def _score_each(
    together: Together, names: Sequence[str], classes: Sequence[str], overall: float
) -> dict[str, object]:
    """The entries "worst", "worse" and "per_group", given the accuracy of all images."""
    accuracy, sizes = together.accuracy, together.sizes
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
        "per_group": {names[i]: rows[names[i]] | together.answers(i, classes) for i in order},
    }


def _resample(
    probabilities: np.ndarray, labels: np.ndarray, unit: np.ndarray, *, bootstrap: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, list[float] | None]]:
    """Metrics of images that are resampled by `unit`: values, resamples, intervals."""
    statistics = classification.Statistics(probabilities, labels, unit)
    sizes = np.bincount(unit)
    values = {name: float(v[0]) for name, v in statistics(np.ones((len(sizes), 1))).items()}
    samples = statistics.resampled(bootstrap, seed)
    intervals = {name: interval(each, sizes) for name, each in samples.items()}
    correct = probabilities.argmax(axis=1) == labels
    accuracy = np.bincount(unit, correct) / sizes
    if _are_equal(accuracy):
        intervals["accuracy"] = _of_equal_groups(accuracy)
    return values, samples, intervals


def _score_others(
    probabilities: np.ndarray, labels: np.ndarray, unit: np.ndarray, others: np.ndarray, **scored
) -> dict[str, object] | None:
    """Metrics of the images `others`; None if there are none."""
    if not others.any():
        return None
    _, unit = np.unique(unit[others], return_inverse=True)
    values, _, intervals = _resample(probabilities[others], labels[others], unit, **scored)
    names = ("accuracy", "balanced_accuracy")
    return {
        "n": int(others.sum()),
        **{name: values[name] for name in names},
        "ci95": {name: intervals[name] for name in names},
    }


def index(groups: Sequence[str]) -> tuple[Names, GroupOf]:
    """The names of the groups, sorted, and the index of each image's group.

    Args:
      groups: Key of each image's group, "" for an image without one.

    Returns:
      The names, and for each image an index into them; -1 for an image without a group.
    """
    names, group_of = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) and names[0] == "":
        return tuple(names[1:].tolist()), group_of - 1
    return tuple(names.tolist()), group_of


class Together:
    """What the images of each group say together.

    Attributes:
      sizes: Number of images of each group.
      accuracy: Share of the images of each group that are classified correctly.
      true: Share of each class by the labels, [groups, classes].
      predicted: Share of each class by the predictions.
      mean: Mean probability of each class.
      label: Most frequent label of each group, -1 if several are equally frequent.
      majority: Most frequent prediction; of several that are equally frequent, the one with the
        highest mean probability.
      by_mean: Class with the highest mean probability.
    """

    def __init__(
        self,
        probabilities: Float[np.ndarray, "n classes"],
        labels: Int[np.ndarray, " n"],
        group_of: Int[np.ndarray, " n"],
    ):
        """Sums up the images of each group.

        Args:
          probabilities: Class probabilities of each image.
          labels: True class indices.
          group_of: Index of the group of each image, in 0 to the number of groups - 1.
        """
        num_classes, groups = probabilities.shape[1], int(group_of.max()) + 1
        self.sizes = np.bincount(group_of, minlength=groups)

        def shares(label: np.ndarray) -> np.ndarray:
            cells = np.bincount(group_of * num_classes + label, minlength=groups * num_classes)
            return cells.reshape(groups, num_classes) / self.sizes[:, None]

        predicted = probabilities.argmax(axis=1)
        hits = np.bincount(group_of, predicted == labels, minlength=groups)
        self.accuracy = hits / self.sizes
        self.true, self.predicted = shares(labels), shares(predicted)
        columns = [np.bincount(group_of, p, minlength=groups) for p in probabilities.T]
        self.mean = np.stack(columns, axis=1) / self.sizes[:, None]
        top = self.true == self.true.max(axis=1, keepdims=True)
        self.label = np.where(top.sum(axis=1) == 1, top.argmax(axis=1), -1)
        most = self.predicted == self.predicted.max(axis=1, keepdims=True)
        self.majority = np.where(most, self.mean, -1.0).argmax(axis=1)
        self.by_mean = self.mean.argmax(axis=1)

    def answers(self, group: int, classes: Sequence[str]) -> dict[str, str | None]:
        """The classes of one group by name: "label", "majority" and "mean_probability"."""
        label = int(self.label[group])
        return {
            "label": classes[label] if label >= 0 else None,
            "majority": classes[self.majority[group]],
            "mean_probability": classes[self.by_mean[group]],
        }


def score_together(
    together: Together, classes: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """Scores one answer for each group, where a group counts like an image.

    The true class of a group is the most frequent label of its images.

    Args:
      together: The groups.
      classes: Class names in label order.
      bootstrap: Number of resamples of the groups.
      seed: Seed of the resamples.

    Returns:
      "n": number of groups that are scored; "tied": number of groups that are not, because two
      labels are equally frequent; "mixed": number of groups with images of several classes. Under
      "majority" (the most frequent prediction; its scores are the shares of the predictions) and
      "mean_probability", "accuracy", "balanced_accuracy", "f1_macro" and "auc_ovr" with their
      "ci95". The interval of the accuracy is Wilson's.
    """
    scored = together.label >= 0
    labels, n = together.label[scored], int(scored.sum())
    methods = {
        "majority": (together.predicted[scored], together.majority[scored]),
        "mean_probability": (together.mean[scored], together.by_mean[scored]),
    }
    content = {
        "n": n,
        "tied": int((~scored).sum()),
        "mixed": int((np.count_nonzero(together.true, axis=1) > 1).sum()),
    }
    for name, (scores, answer) in methods.items():
        if not n:
            content[name] = {**dict.fromkeys(_TOGETHER), "ci95": dict.fromkeys(_TOGETHER)}
            continue
        resampled = {"bootstrap": bootstrap, "seed": seed}
        by_score = classification.evaluate(scores, labels, classes, **resampled)
        by_answer = by_score
        if (scores.argmax(axis=1) != answer).any():  # of equal shares the mean has decided
            answers = np.eye(len(classes))[answer]
            by_answer = classification.evaluate(answers, labels, classes, **resampled)
        hits = int(np.sum(answer == labels))
        source = {key: by_score if key == "auc_ovr" else by_answer for key in _TOGETHER}
        content[name] = {key: found[key] for key, found in source.items()}
        content[name]["ci95"] = {key: found["ci95"][key] for key, found in source.items()}
        content[name]["ci95"]["accuracy"] = list(classification.wilson_interval(hits, n))
    return content


def score_shares(
    together: Together, classes: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """Compares the share of each class in a group, as in a differential count, with the true one.

    Args:
      together: The groups, which all count the same.
      classes: Class names in label order.
      bootstrap: Number of resamples of the groups.
      seed: Seed of the resamples.

    Returns:
      For "majority" (the shares of the predictions) and "mean_probability": "distance", the mean
      over the groups of half the sum of the absolute differences, 0..1 (the share of images that
      are counted for a wrong class), with "distance_ci95", and "per_class": class -> "true" and
      "estimated", means over the groups, "bias", the mean difference, with "bias_ci95", and
      "error", the mean absolute difference.
    """
    content = {}
    for name, estimated in (("majority", together.predicted), ("mean_probability", together.mean)):
        difference = estimated - together.true
        distance = np.abs(difference).sum(axis=1) / 2
        columns = np.column_stack([distance, difference])
        samples = _resampled_means(columns, bootstrap, seed)
        limits = [interval(values, np.ones(len(columns), int)) for values in samples.T]
        content[name] = {
            "distance": float(distance.mean()),
            "distance_ci95": limits[0],
            "per_class": {
                label: {
                    "true": float(together.true[:, i].mean()),
                    "estimated": float(estimated[:, i].mean()),
                    "bias": float(difference[:, i].mean()),
                    "bias_ci95": limits[1 + i],
                    "error": float(np.abs(difference[:, i]).mean()),
                }
                for i, label in enumerate(classes)
            },
        }
    return content


def effective_number(sizes: Int[np.ndarray, " units"]) -> float:
    """Number of groups of equal size with the same variance: Kish's (sum n)^2 / sum n^2."""
    return float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum())


def interval(
    values: Float[np.ndarray, " r"], sizes: Int[np.ndarray, " units"]
) -> list[float] | None:
    """The 95 % interval of a metric, given its values in resamples of groups.

    Percentiles of the resamples are too narrow for few groups. They are moved outwards as Student's
    distribution with g - 1 degrees of freedom is wider than the normal one, and by the bias of the
    variance (the expanded percentile interval: Hesterberg 2015, section 5.3 of
    https://arxiv.org/abs/1411.5279); g is the effective number of groups.

    Args:
      values: The metric of each resample, NaN where it is undefined.
      sizes: Number of images of each group.

    Returns:
      The lower and the upper limit; None for a single group, or if no value is defined.
    """
    if len(sizes) < 2:
        return None
    effective = max(effective_number(sizes), 1.01)
    student = scipy.stats.t.ppf(0.975, max(effective - 1, 1.0))
    tail = scipy.stats.norm.cdf(-np.sqrt(effective / (effective - 1)) * student)
    return classification.percentiles(values, 100 * float(tail))


def _are_equal(accuracy: Float[np.ndarray, " g"]) -> bool:
    """Whether several groups have the same accuracy, so resamples of them show no width."""
    return len(accuracy) > 1 and bool(np.ptp(accuracy) == 0)


def _of_equal_groups(accuracy: Float[np.ndarray, " g"]) -> list[float]:
    """The 95 % interval of the accuracy that all groups have: Wilson's, each group is a trial."""
    return wilson_intervals(accuracy.sum(keepdims=True), np.array([len(accuracy)]))[0].tolist()


def wilson_intervals(
    successes: Float[np.ndarray, " g"] | Int[np.ndarray, " g"], trials: Int[np.ndarray, " g"]
) -> Float[np.ndarray, "g 2"]:
    """`classification.wilson_interval` of many proportions at once, by its formula.

    Successes may be fractions, as of trials that stand for several images each.
    """
    share, z2 = successes / trials, _NORMAL_95**2
    centre = share + z2 / (2 * trials)
    spread = np.sqrt(share * (1 - share) * z2 / trials + (z2 / (2 * trials)) ** 2)
    limits = np.stack([centre - spread, centre + spread], axis=1) / (1 + z2 / trials)[:, None]
    return np.clip(limits, 0.0, 1.0)


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
    (samples,) = _resampled_means(accuracy[:, None], bootstrap, seed).T
    quantiles = np.quantile(accuracy, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "mean": float(accuracy.mean()),
        "mean_ci95": _of_equal_groups(accuracy)
        if _are_equal(accuracy)
        else interval(samples, np.ones(len(accuracy), int)),
        "sd": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None,
        **dict(zip(("min", "q25", "median", "q75", "max"), quantiles, strict=True)),
    }


def _resampled_means(
    values: Float[np.ndarray, "g k"], bootstrap: int, seed: int
) -> Float[np.ndarray, "r k"]:
    """Means over the groups of each resample."""
    groups = len(values)
    at_once = max(1, classification.RESAMPLED_AT_ONCE // groups)
    draws = classification.draw(groups, bootstrap, at_once, seed)
    return np.concatenate([counts.T @ values for counts in draws]) / groups
