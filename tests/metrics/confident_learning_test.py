import numpy as np
import pytest

from bloodjax.metrics import confident_learning


def noisy(n=600, num_classes=3, flipped=0.05, accuracy=0.97, seed=0):
    """Probabilities of a good model, its labels, and which labels are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(num_classes, size=n)
    predicted = np.where(rng.random(n) < accuracy, true, (true + 1) % num_classes)
    # Mistakes are less confident than right predictions.
    confidence = np.where(predicted == true, rng.uniform(0.8, 1, n), rng.uniform(0.4, 0.8, n))
    probabilities = np.repeat((1 - confidence)[:, None] / (num_classes - 1), num_classes, axis=1)
    probabilities[np.arange(n), predicted] = confidence
    wrong = np.zeros(n, bool)
    wrong[rng.choice(n, round(flipped * n), replace=False)] = True
    labels = np.where(wrong, (true + rng.integers(1, num_classes, n)) % num_classes, true)
    return probabilities.astype(np.float32), labels, wrong, true


def test_wrong_labels_are_found_with_their_class():
    probabilities, labels, wrong, true = noisy()
    found = confident_learning.find(probabilities, labels)
    assert np.mean(wrong[found.index]) > 0.9
    assert wrong[found.index].sum() > 0.85 * wrong.sum()
    hits = found.index[wrong[found.index]]
    assert np.mean(found.suggested[wrong[found.index]] == true[hits]) > 0.9
    assert found.noise == pytest.approx(0.05, abs=0.015)


def test_the_most_suspicious_come_first():
    found = confident_learning.find(*noisy()[:2])
    probabilities, labels = noisy()[:2]
    rows = probabilities[found.index].astype(float)
    each = np.arange(len(rows))
    margin = rows[each, found.suggested] - rows[each, labels[found.index]]
    np.testing.assert_allclose(found.score, margin)
    assert (np.diff(found.score) <= 0).all()
    assert (found.score > 0).all()


def test_the_joint_has_the_counts_of_the_labels():
    probabilities, labels, _, _ = noisy()
    joint = confident_learning.find(probabilities, labels).joint
    np.testing.assert_allclose(joint.sum(axis=1), np.bincount(labels) / len(labels))


def test_by_hand():
    # Thresholds are the means of the class's own probabilities: 0.6 and 0.8.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8]])
    labels = np.array([0, 0, 0, 1, 1])
    found = confident_learning.find(probabilities, labels)
    np.testing.assert_allclose(found.thresholds, [0.6, 0.8])
    np.testing.assert_allclose(found.joint, [[2 / 5, 1 / 5], [0, 2 / 5]])
    assert found.index.tolist() == [2]
    assert found.suggested.tolist() == [1]
    np.testing.assert_allclose(found.score, [0.8])


def test_right_labels_are_not_suspected():
    probabilities, labels, _, _ = noisy(flipped=0.0, accuracy=1.0)
    found = confident_learning.find(probabilities, labels)
    assert (len(found.index), found.noise) == (0, 0)


def test_an_uncertain_model_suspects_nothing():
    probabilities = np.full((6, 3), 1 / 3)
    assert len(confident_learning.find(probabilities, np.arange(6) % 3).index) == 0


def test_a_class_without_images_is_never_confident():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    found = confident_learning.find(probabilities, np.array([0, 0]))
    assert found.thresholds.tolist() == [pytest.approx(0.45), np.inf, np.inf]
    assert len(found.index) == 0


@pytest.mark.parametrize(
    ("labels", "reason"), [([], "no images"), ([0, 3], "labels 0..3 for 3"), ([-1, 0], "labels -1")]
)
def test_what_cannot_be_judged_is_an_error(labels, reason):
    probabilities = np.full((len(labels), 3), 1 / 3)
    with pytest.raises(ValueError, match=reason):
        confident_learning.find(probabilities, np.array(labels, int))
