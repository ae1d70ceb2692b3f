"""Tests of benchmarks/ablation_scores.py."""

import numpy as np
import pytest

from benchmarks import ablation_scores
from benchmarks.ablation_scores import Answers


def answers(seed, guesses, labels, names=("a", "b")):
    probabilities = np.eye(len(names))[guesses] * 0.9 + 0.1 / len(names)
    return Answers.of(seed, probabilities, np.array(labels), names)


def test_a_row_pools_the_seeds_and_is_compared_with_another():
    labels = [0, 1, 0, 1]
    before = answers(0, [0, 0, 1, 1], labels).joined(answers(1, [0, 1, 1, 0], labels))
    after = answers(0, [0, 1, 0, 1], labels).joined(answers(1, [0, 1, 1, 1], labels))
    figures = ablation_scores.scores(
        {"clean": after, "distorted": after}, {"clean": before, "distorted": before}
    )
    clean = figures["clean"]
    assert clean["n"] == 8
    assert clean["accuracy"] == pytest.approx(7 / 8)
    assert clean["seeds"] == {"0": 1.0, "1": 0.75}
    assert clean["gain"]["difference"] == pytest.approx(3 / 8)
    assert clean["gain"]["mcnemar"]["gained"] == 3
    low, high = clean["ci95"]
    assert low < 7 / 8 <= high


def test_the_mean_recall_is_over_the_classes_with_images():
    found = answers(0, [0, 0, 0, 1, 2], [0, 0, 0, 1, 1], ("a", "b", "c"))
    scored = ablation_scores.scores({"clean": found}, None)["clean"]
    assert scored["recall"] == {"a": 1.0, "b": 0.5}
    assert scored["mean_recall"] == pytest.approx(0.75)
    assert scored["mean_recall_of_seeds"] == {"0": pytest.approx(0.75)}
    assert scored["accuracy"] == pytest.approx(4 / 5)


def test_with_the_classes_of_the_labels_only_these_are_answered():
    probabilities = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]], np.float32)
    found = Answers.of(0, probabilities, np.array([0, 2]), ("a", "b", "c"))
    own = ablation_scores.restricted(found)
    np.testing.assert_allclose(own.probabilities, [[5 / 8, 0, 3 / 8], [1 / 4, 0, 3 / 4]], rtol=1e-5)
    assert found.probabilities is probabilities
    assert ablation_scores.scores({"site": found}, None)["site"]["accuracy"] == 0.5
    assert ablation_scores.scores({"site": own}, None)["site"]["accuracy"] == 1.0


def test_other_images_have_no_gain():
    one, other = answers(0, [0, 1], [0, 1]), answers(0, [0, 1, 1], [0, 1, 1])
    assert "gain" not in ablation_scores.scores({"clean": one}, {"clean": other})["clean"]


def test_cumulative_rows_have_a_column_for_the_gain():
    one = answers(0, [0, 1], [0, 1]).joined(answers(1, [0, 0], [0, 1]))
    found = {"clean": one, "distorted": one, "lab": one}
    first, second = (ablation_scores.scores(found, other) for other in (None, found))
    lines = ablation_scores.cumulative_table({"first": first, "second": second}).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("| training | clean | distorted | lab | gain over")
    assert lines[2].startswith("| first | 0.750 (")
    assert lines[2].endswith("|  |")
    assert "+0.000 (+0.000 to +0.000)" in lines[3]


def test_rows_of_one_change_have_the_difference_in_each_cell():
    one = answers(0, [0, 1], [0, 1]).joined(answers(1, [0, 0], [0, 1]))
    found = {"clean": one, "distorted": one}
    first, second = (ablation_scores.scores(found, other) for other in (None, found))
    lines = ablation_scores.one_change_table({"first": first, "second": second}).splitlines()
    assert lines[0] == "| training | clean | distorted |"
    assert lines[2] == "| first | 0.750; 1.000, 0.500 | 0.750; 1.000, 0.500 |"
    same = "0.750; 1.000, 0.500; +0.000 (+0.000 to +0.000)"
    assert lines[3] == f"| second | {same} | {same} |"
