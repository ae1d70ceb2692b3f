import numpy as np

from bloodjax.evaluation import feature_heads


def features_of(n, seed=0, size=6, distance=8.0):
    """Features of three classes that are far apart, with labels and folds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = rng.normal(size=(3, size)) * distance
    features = (centres[labels] + rng.normal(size=(n, size))).astype(np.float32)
    return features, labels, rng.permutation(n) % feature_heads.FOLDS


def test_heads_predict_images_that_they_were_not_fitted_to():
    features, labels, folds = features_of(150)
    probabilities = feature_heads.out_of_fold(features, labels, folds, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert np.mean(probabilities.argmax(axis=1) == labels) == 1


def test_an_image_s_own_label_does_not_count():
    features, labels, folds = features_of(150)
    changed = labels.copy()
    changed[7] = (labels[7] + 1) % 3
    probabilities = feature_heads.out_of_fold(features, changed, folds, 3)
    assert probabilities[7].argmax() == labels[7]
    assert probabilities[7, changed[7]] < 0.1


def test_fewer_images_than_features():
    features, labels, folds = features_of(30, size=200)
    probabilities = feature_heads.out_of_fold(features, labels, folds, 3)
    assert np.isfinite(probabilities).all()
    assert np.mean(probabilities.argmax(axis=1) == labels) > 0.9


def test_constant_features_say_nothing():
    labels, folds = np.arange(30) % 3, np.arange(30) // 3 % feature_heads.FOLDS
    features = np.ones((30, 4), np.float32)
    probabilities = feature_heads.out_of_fold(features, labels, folds, 3)
    np.testing.assert_allclose(probabilities, 1 / 3, atol=1e-6)


def test_a_class_without_images_is_impossible():
    features, labels, folds = features_of(60)
    probabilities = feature_heads.out_of_fold(features, labels, folds, 5)
    assert (probabilities[:, 3:] == 0).all()


def test_probabilities_are_as_confident_as_they_are_right():
    features, labels, folds = features_of(600, distance=0.8)
    probabilities = feature_heads.out_of_fold(features, labels, folds, 3)
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    assert accuracy < 0.95
    assert abs(probabilities.max(axis=1).mean() - accuracy) < 0.05
