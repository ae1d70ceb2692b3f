import numpy as np
import pytest

from bloodjax.metrics import label_shift

TRAINING = np.array([0.4, 0.3, 0.2, 0.1])
SITE = np.array([0.05, 0.15, 0.3, 0.5])


def draw(shares, n, seed, spread=1.2):
    """Labels by shares, and the probabilities of a classifier that is calibrated in training."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=shares)
    # One normal feature per class; the posterior by Bayes's rule with the training shares.
    features = rng.normal(size=(n, 4)) + spread * np.eye(4)[labels] * 2
    scores = 2 * spread * features + np.log(TRAINING)
    scores -= scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return probabilities, labels


def test_both_methods_find_the_shares():
    probabilities, labels = draw(SITE, 2000, 1)
    validation, known = draw(TRAINING, 4000, 2)
    found = label_shift.estimate(probabilities, TRAINING, validation, known)
    true = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(found.site, true, atol=0.02)
    np.testing.assert_allclose(found.by_confusion, true, atol=0.02)
    np.testing.assert_allclose(found.ratio, found.site / TRAINING)
    assert found.disagreement < 0.03
    assert ((found.low <= true) & (true <= found.high)).all()
    assert (found.high - found.low).max() < 0.06
    again = label_shift.estimate(probabilities, TRAINING, validation, known)
    np.testing.assert_array_equal(found.low, again.low)


def test_intervals_are_wider_for_fewer_images():
    validation, known = draw(TRAINING, 500, 2)
    few, many = (
        label_shift.estimate(draw(SITE, n, 3)[0], TRAINING, validation, known) for n in (40, 1000)
    )
    assert (few.high - few.low).sum() > 2 * (many.high - many.low).sum()


def test_without_a_shift_the_shares_are_those_of_training():
    probabilities, _ = draw(TRAINING, 3000, 5)
    np.testing.assert_allclose(
        label_shift.by_likelihood(probabilities, TRAINING), TRAINING, atol=0.02
    )


def test_a_class_that_cannot_occur_has_no_share_and_one_that_did_not_keeps_some():
    probabilities, _ = draw(np.array([0, 0.0, 0.5, 0.5]), 300, 4)
    probabilities[:, 0] = 0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    validation, known = draw(TRAINING, 400, 2)
    found = label_shift.estimate(probabilities, TRAINING, validation, known)
    assert found.site[0] == found.by_confusion[0] == found.high[0] == 0
    assert 0 < found.site[1] < 0.02
    assert abs(found.site.sum() - 1) < 1e-9


@pytest.mark.parametrize("n", [1, 2])
def test_one_image_gives_shares(n):
    probabilities = np.array([[1.0, 0, 0, 0], [0.2, 0.3, 0.4, 0.1]])[:n].astype(np.float32)
    validation, known = draw(TRAINING, 60, 2)
    found = label_shift.estimate(probabilities, TRAINING, validation, known, bootstrap=5)
    assert np.isfinite([found.site, found.low, found.high, found.by_confusion]).all()
    assert (found.low <= found.site).all()
    assert (found.site <= found.high).all()


def test_a_class_without_validation_images_counts_as_recognised():
    probabilities, _ = draw(SITE, 500, 1, spread=3)
    validation, known = draw(TRAINING, 500, 2, spread=3)
    found = label_shift.by_confusion(probabilities, validation[known > 0], known[known > 0])
    np.testing.assert_allclose(found, SITE, atol=0.06)
