import numpy as np
import pytest

from bloodjax.metrics import group_predictions
from bloodjax.metrics.group_predictions import GroupPredictions
from bloodjax.metrics.intervals import wilson_interval

CLASSES = ("a", "b", "c")


def draw(n=200, groups=12, decimals=12):
    """Probabilities and labels of images, and the index of their groups; few decimals make ties."""
    rng = np.random.default_rng(0)
    labels, group_of = rng.integers(3, size=n), rng.permutation(n) % groups
    probabilities = rng.dirichlet((1, 1, 1), size=n) + np.eye(3)[labels] / 2
    probabilities = probabilities.round(decimals) + 1e-3
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, group_of


def test_images_without_a_group_have_no_index():
    names, group_of = group_predictions.index_groups(["y", "", "x", "y"])
    assert names == ("x", "y")
    assert group_of.tolist() == [1, -1, 0, 1]
    assert group_predictions.index_groups(["", ""])[0] == ()


def test_answers_of_whole_groups():
    labels = np.array([0, 0, 1, 1, 1, 2, 0, 1])
    group_of = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    # Predictions: 0, 1, 1; 0 and 1, of which 1 is more probable; 2. The last has tied labels.
    scores = [
        [8, 1, 1],
        [4, 5, 1],
        [4, 5, 1],
        [5, 4, 1],
        [0, 9, 1],
        [1, 1, 8],
        [8, 1, 1],
        [1, 8, 1],
    ]
    probabilities = np.array(scores) / 10
    groups = GroupPredictions(probabilities, labels, group_of)
    answers = [groups.answers(i, CLASSES) for i in range(4)]
    assert [each["label"] for each in answers] == ["a", "b", "c", None]
    assert [each["majority"] for each in answers[:3]] == ["b", "b", "c"]
    assert [each["mean_probability"] for each in answers[:3]] == ["a", "b", "c"]
    found = group_predictions.score_answers(groups, CLASSES, bootstrap=20)
    assert (found["n"], found["tied"], found["mixed"]) == (3, 1, 2)
    assert found["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert found["majority"]["ci95"]["accuracy"] == list(wilson_interval(2, 3))
    assert found["mean_probability"]["accuracy"] == 1
    assert found["mean_probability"]["auc_ovr"] == 1


def test_the_score_of_the_majority_and_its_answer_agree():
    groups = GroupPredictions(*draw(300, groups=100, decimals=1))
    found = group_predictions.score_answers(groups, CLASSES, bootstrap=20)
    scored = groups.label >= 0
    methods = {"majority": groups.majority, "mean_probability": groups.most_probable}
    for name, answers in methods.items():
        hits = (answers == groups.label)[scored]
        assert found[name]["accuracy"] == pytest.approx(hits.mean())
        recalls = [hits[groups.label[scored] == i].mean() for i in range(3)]
        assert found[name]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    first = groups.predicted_shares.argmax(axis=1)
    assert (first != groups.majority)[scored].any(), "the mean probability decides some ties"


def test_groups_without_a_most_frequent_label_have_no_scores():
    groups = GroupPredictions(np.eye(3)[[0, 1]], np.array([0, 1]), np.array([0, 0]))
    found = group_predictions.score_answers(groups, CLASSES)
    assert (found["n"], found["tied"]) == (0, 1)
    assert found["majority"]["accuracy"] is found["majority"]["ci95"]["accuracy"] is None


def test_shares_of_the_classes():
    probabilities, labels, group_of = draw()
    groups = GroupPredictions(probabilities, labels, group_of)
    found = group_predictions.score_shares(groups, CLASSES, bootstrap=200)
    predicted = probabilities.argmax(axis=1)
    difference = np.array(
        [
            [np.mean(predicted[in_group] == c) - np.mean(labels[in_group] == c) for c in range(3)]
            for in_group in (group_of == g for g in range(12))
        ]
    )
    rows = found["majority"]["per_class"]
    assert [row["bias"] for row in rows.values()] == pytest.approx(difference.mean(axis=0).tolist())
    assert [row["error"] for row in rows.values()] == pytest.approx(
        np.abs(difference).mean(axis=0).tolist()
    )
    distance = np.abs(difference).sum(axis=1).mean() / 2
    assert found["majority"]["distance"] == pytest.approx(distance)
    low, high = found["majority"]["distance_ci95"]
    assert low < distance < high
    by_mean = found["mean_probability"]["per_class"]["a"]
    mean = np.mean([probabilities[group_of == g, 0].mean() for g in range(12)])
    assert by_mean["estimated"] == pytest.approx(mean)
