import numpy as np
import pytest
from scipy.special import softmax

from bloodjax.metrics import conformal


def sample(rng, n, classes=6):
    """Predictions and labels; the predictions are far too confident."""
    logits = 2 * rng.normal(size=(n, classes))
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    return softmax(4 * logits, axis=1), labels


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_sets_cover_what_was_promised_however_bad_the_probabilities(alpha):
    rng, n = np.random.default_rng(0), 99
    covered = []
    for _ in range(300):
        lowest = conformal.threshold(*sample(rng, n), alpha)
        new, labels = sample(rng, 200)
        covered.append(conformal.coverage(conformal.sets(new, lowest), labels)["coverage"])
    # The promise is about the mean over calibration sets, whose standard error is below 0.003.
    assert np.mean(covered) >= 1 - alpha - 0.006
    # The classifier is wrong more often than alpha, so the sets need not cover more either.
    assert np.mean(covered) <= 1 - alpha + 0.02


def test_the_threshold_is_the_quantile_for_finite_samples():
    true = np.arange(1, 20) / 20  # 19 images
    probabilities = np.stack([true, 1 - true], axis=1)
    labels = np.zeros(19, int)
    # floor(0.05 * 20) = 1: the lowest; floor(0.1 * 20) = 2: the second lowest.
    assert conformal.threshold(probabilities, labels, 0.05) == pytest.approx(1 / 20)
    assert conformal.threshold(probabilities, labels, 0.1) == pytest.approx(2 / 20)
    assert conformal.threshold(probabilities[:18], labels[:18], 0.05) == 0


def test_the_most_probable_class_is_always_in_the_set():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    assert conformal.sets(probabilities, 0.9).tolist() == [
        [True, False, False],
        [True, True, False],
    ]
    assert conformal.sets(probabilities, 0.25)[0].tolist() == [True, True, False]
    assert conformal.sets(probabilities, 0.0).all()
    assert conformal.sets(np.zeros((0, 3)), 0.5).shape == (0, 3)


def test_a_class_that_cannot_occur_is_in_no_set():
    probabilities = np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
    possible = np.array([True, True, False])
    assert conformal.sets(probabilities, 0.0, possible).tolist() == [[True, True, False]] * 2
    assert conformal.sets(probabilities, 0.5, possible).sum(axis=1).tolist() == [1, 1]


def test_coverage_and_size():
    members = np.array([[True, False], [True, True], [True, False]])
    found = conformal.coverage(members, np.array([0, 1, 1]))
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["mean_size"] == pytest.approx(4 / 3)
    low, high = found["coverage_ci95"]
    assert low < 2 / 3 < high


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_share_of_misses_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha is"):
        conformal.threshold(np.ones((1, 1)), np.zeros(1, int), alpha)
