import numpy as np
import pytest

from bloodjax.metrics import accuracy_estimation
from bloodjax.metrics.accuracy_estimation import confidence, negative_entropy


def draw(n, spread, seed, believed=None):
    """Probabilities of a classifier of four classes, and labels.

    Args:
      n: Number of images.
      spread: How far apart the classes are.
      seed: Of the random numbers.
      believed: How far apart the classifier takes them to be; by default it is calibrated.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    features = rng.normal(size=(n, 4)) + spread * np.eye(4)[labels]
    scores = (spread if believed is None else believed) * features
    scores -= scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


VALIDATION = draw(1500, 3.5, 0)


def test_simple_methods_are_right_where_they_were_fitted():
    probabilities, _ = VALIDATION
    truth = accuracy_estimation.accuracy(VALIDATION)
    assert truth > 0.97
    found = accuracy_estimation.difference_of_confidences(probabilities, VALIDATION)
    assert found == pytest.approx(truth)
    for score in (confidence, negative_entropy):
        found = accuracy_estimation.thresholded_confidence(probabilities, VALIDATION, score)
        assert found == pytest.approx(truth, abs=2 / 1500)


def test_many_equal_confidences_do_not_all_count_as_right():
    probabilities = np.concatenate([np.tile([1.0, 0.0], (150, 1)), np.tile([0.7, 0.3], (50, 1))])
    labels = (np.arange(200) % 200 >= 118).astype(int)  # 0.59 are right
    found = accuracy_estimation.thresholded_confidence(
        probabilities, (probabilities, labels), confidence
    )
    assert found == pytest.approx(0.59)


def test_known_values():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.5, 0.25, 0.25]])
    labels = np.array([0, 0, 0])
    assert accuracy_estimation.average_confidence(probabilities) == pytest.approx(2.2 / 3)
    assert accuracy_estimation.accuracy((probabilities, labels)) == pytest.approx(2 / 3)
    entropy = negative_entropy(probabilities)
    assert entropy[0] == pytest.approx(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert entropy[2] == pytest.approx(-1.5 * np.log(2))
    certain = np.array([[1.0, 0, 0]])
    assert negative_entropy(certain) == pytest.approx(0)
    # Two of three are right, so one third of the scores is below the threshold.
    site = np.array([[0.95, 0.05, 0], [0.6, 0.4, 0], [0.75, 0.25, 0], [0.4, 0.35, 0.25]])
    found = accuracy_estimation.thresholded_confidence(site, (probabilities, labels), confidence)
    assert found == 0.5  # The threshold is 0.5 + (0.8 - 0.5) * 2 / 3 = 0.7.


@pytest.mark.parametrize("spread", [3.5, 2.5])
def test_harder_images_of_a_classifier_that_knows_it(spread):
    probabilities, labels = draw(1200, spread, 3)
    truth = accuracy_estimation.accuracy((probabilities, labels))
    found = accuracy_estimation.estimate(probabilities, VALIDATION, {}, bootstrap=30)
    assert abs(found.estimate - truth) < 0.1
    assert found.low <= truth <= found.high
    assert found.method == "average thresholded confidence, validation"


def test_overconfidence_shows_on_images_of_the_same_look():
    probabilities, labels = draw(1200, 0.8, 3, believed=3.5)
    truth = accuracy_estimation.accuracy((probabilities, labels))
    alone = accuracy_estimation.estimate(probabilities, VALIDATION, {}, bootstrap=30)
    assert alone.estimate > truth + 0.15
    changed = {"distorted": VALIDATION, "look": draw(600, 0.8, 9, believed=3.5)}
    found = accuracy_estimation.estimate(probabilities, VALIDATION, changed, bootstrap=30)
    assert abs(found.estimate - truth) < 0.05
    assert found.method == "average thresholded confidence, look"
    assert found.low <= truth <= found.high
    assert found.high >= alone.estimate  # The methods do not agree, which the interval shows.
    assert found.is_vague
    assert set(found.reference_accuracy) == {"validation", "distorted", "look"}
    assert found.by_method["ATC by confidence, look"] == pytest.approx(truth, abs=0.06)
    assert found.to_dict()["is_vague"] is True
    again = accuracy_estimation.estimate(probabilities, VALIDATION, changed, bootstrap=30)
    assert again == found


def test_changed_images_on_which_it_is_as_good_do_not_count():
    probabilities, _ = draw(500, 2.5, 3)
    alone = accuracy_estimation.estimate(probabilities, VALIDATION, {}, bootstrap=10)
    with_more = accuracy_estimation.estimate(
        probabilities, VALIDATION, {"look": draw(900, 3.4, 8)}, bootstrap=10
    )
    assert with_more.estimate == alone.estimate
    assert with_more.high == alone.high


def test_one_image_and_classes_that_cannot_occur():
    probabilities = np.array([[0.7, 0, 0.3, 0]], np.float32)
    found = accuracy_estimation.estimate(probabilities, VALIDATION, {}, bootstrap=5)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
