"""Predictions for groups of images, such as patients or slides, and how good they are.

The images of a group give one answer together, by the most frequent prediction or by the mean
probability. They also give the share of each class, as in a differential count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from bloodjax.metrics import classification
from bloodjax.metrics.intervals import wilson_interval
from bloodjax.metrics.resampling import expanded_percentile_interval, resampled_means

_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "auc_ovr")

# Index into the names of the groups for each image, -1 for an image without a group.
GroupOf = Int[np.ndarray, " n"]
Names = tuple[str, ...]


def index_groups(groups: Sequence[str]) -> tuple[Names, GroupOf]:
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


class GroupPredictions:
    """Labels and predictions of each group, from those of its images.

    Attributes:
      sizes: Number of images of each group.
      accuracy: Share of the images of each group that are classified correctly.
      true_shares: Share of each class by the labels, [groups, classes].
      predicted_shares: Share of each class by the predictions, [groups, classes].
      mean_probability: Mean probability of each class, [groups, classes].
      label: Most frequent label of each group, -1 if several are equally frequent.
      majority: Most frequent prediction; of several that are equally frequent, the one with the
        highest mean probability.
      most_probable: Class with the highest mean probability.
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
        self.true_shares, self.predicted_shares = shares(labels), shares(predicted)
        columns = [np.bincount(group_of, p, minlength=groups) for p in probabilities.T]
        self.mean_probability = np.stack(columns, axis=1) / self.sizes[:, None]
        is_top = self.true_shares == self.true_shares.max(axis=1, keepdims=True)
        self.label = np.where(is_top.sum(axis=1) == 1, is_top.argmax(axis=1), -1)
        is_top = self.predicted_shares == self.predicted_shares.max(axis=1, keepdims=True)
        self.majority = np.where(is_top, self.mean_probability, -1.0).argmax(axis=1)
        self.most_probable = self.mean_probability.argmax(axis=1)

    def answers(self, group: int, classes: Sequence[str]) -> dict[str, str | None]:
        """The classes of one group by name: "label", "majority" and "mean_probability"."""
        label = int(self.label[group])
        return {
            "label": classes[label] if label >= 0 else None,
            "majority": classes[self.majority[group]],
            "mean_probability": classes[self.most_probable[group]],
        }


def score_answers(
    groups: GroupPredictions, classes: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """Scores one answer for each group, where a group counts like an image.

    The true class of a group is the most frequent label of its images.

    Args:
      groups: The groups.
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
    scored = groups.label >= 0
    methods = {
        "majority": (groups.predicted_shares, groups.majority),
        "mean_probability": (groups.mean_probability, groups.most_probable),
    }
    content = {
        "n": int(scored.sum()),
        "tied": int((~scored).sum()),
        "mixed": int((np.count_nonzero(groups.true_shares, axis=1) > 1).sum()),
    }
    for name, (scores, answers) in methods.items():
        if not scored.any():
            content[name] = {**dict.fromkeys(_METRICS), "ci95": dict.fromkeys(_METRICS)}
            continue
        content[name] = _score_method(
            scores[scored], answers[scored], groups.label[scored], classes, bootstrap, seed
        )
    return content


def _score_method(
    scores: Float[np.ndarray, "g classes"],
    answers: Int[np.ndarray, " g"],
    labels: Int[np.ndarray, " g"],
    classes: Sequence[str],
    bootstrap: int,
    seed: int,
) -> dict:
    """The metrics of the answers of one method, and under "ci95" their intervals."""
    found = classification.evaluate(scores, labels, classes, bootstrap=bootstrap, seed=seed)
    if (scores.argmax(axis=1) != answers).any():
        # Of equal scores, `evaluate` takes the first class as the prediction, and the answer is
        # another. So only the area comes from the scores.
        one_hot = np.eye(len(classes))[answers]
        area, area_ci95 = found["auc_ovr"], found["ci95"]["auc_ovr"]
        found = classification.evaluate(one_hot, labels, classes, bootstrap=bootstrap, seed=seed)
        found["auc_ovr"], found["ci95"]["auc_ovr"] = area, area_ci95
    hits = int(np.sum(answers == labels))
    ci95 = {name: found["ci95"][name] for name in _METRICS}
    ci95["accuracy"] = list(wilson_interval(hits, len(labels)))
    return {**{name: found[name] for name in _METRICS}, "ci95": ci95}


def score_shares(
    groups: GroupPredictions, classes: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict:
    """Compares the share of each class in a group, as in a differential count, with the true one.

    Args:
      groups: The groups, which all count the same.
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
    methods = {"majority": groups.predicted_shares, "mean_probability": groups.mean_probability}
    true = groups.true_shares
    content = {}
    for name, estimated in methods.items():
        difference = estimated - true
        distance = np.abs(difference).sum(axis=1) / 2
        columns = np.column_stack([distance, difference])
        samples = resampled_means(columns, bootstrap, seed)
        ones = np.ones(len(columns), int)
        limits = [expanded_percentile_interval(values, ones) for values in samples.T]
        content[name] = {
            "distance": float(distance.mean()),
            "distance_ci95": limits[0],
            "per_class": {
                label: {
                    "true": float(true[:, i].mean()),
                    "estimated": float(estimated[:, i].mean()),
                    "bias": float(difference[:, i].mean()),
                    "bias_ci95": limits[1 + i],
                    "error": float(np.abs(difference[:, i]).mean()),
                }
                for i, label in enumerate(classes)
            },
        }
    return content
