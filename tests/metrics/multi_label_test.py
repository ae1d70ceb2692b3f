import numpy as np
import pytest
import sklearn.metrics

from bloodjax import metrics
from bloodjax.metrics import multi_label

CLASSES = tuple("abcde")


def example(n=200, seed=0, decimals=2):
    """Labels, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]).astype(int)
    probabilities = np.clip(0.6 * rng.random((n, 5)) + 0.3 * labels, 0, 1)
    return probabilities.round(decimals).astype(np.float32), labels


def test_metrics_are_those_of_scikit_learn():
    p, y = example()
    found = metrics.evaluate(p, y, CLASSES, bootstrap=10)
    predicted = p > 0.5
    f1 = {
        average: sklearn.metrics.f1_score(y, predicted, average=average, zero_division=0)
        for average in ("macro", "micro")
    }
    expected = {
        "accuracy": (y == predicted).mean(),
        "subset_accuracy": sklearn.metrics.accuracy_score(y, predicted),
        "auc_ovr": sklearn.metrics.roc_auc_score(y, p),
        "map": sklearn.metrics.average_precision_score(y, p),
        "f1_macro": f1["macro"],
        "f1_micro": f1["micro"],
        "precision_at_50": sklearn.metrics.precision_score(y, predicted, average="micro"),
        "recall_at_50": sklearn.metrics.recall_score(y, predicted, average="micro"),
        "brier": np.mean((p - y) ** 2),
        "nll": sklearn.metrics.log_loss(y.ravel(), p.ravel().astype(float)),
        "balanced_accuracy": np.mean(
            [sklearn.metrics.balanced_accuracy_score(y[:, i], predicted[:, i]) for i in range(5)]
        ),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["n"] == 200
    assert found["task"] == "multi-label"
    confusion = sklearn.metrics.multilabel_confusion_matrix(y, predicted)
    np.testing.assert_array_equal(found["confusion_matrix"], confusion)
    for i, name in enumerate(CLASSES):
        row = found["per_class"][name]
        assert row["support"] == y[:, i].sum()
        assert row["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(y[:, i], p[:, i]))
        average = sklearn.metrics.average_precision_score(y[:, i], p[:, i])
        assert row["average_precision"] == pytest.approx(average)
        assert row["f1"] == pytest.approx(sklearn.metrics.f1_score(y[:, i], predicted[:, i]))


@pytest.mark.parametrize("name", ["chestmnist", "breastmnist", "retinamnist", "dermamnist"])
def test_auc_and_accuracy_are_those_of_medmnists_evaluator(tmp_path, name):
    medmnist = pytest.importorskip("medmnist", reason="medmnist is not installed")
    info = medmnist.INFO[name]
    rng, classes = np.random.default_rng(0), len(info["label"])
    if info["task"].startswith("multi-label"):
        labels = (rng.random((120, classes)) < 0.3).astype(np.int32)
        p = np.clip(rng.random((120, classes)) + 0.2 * labels, 0, 1)
        stored = labels
    else:
        labels = rng.integers(classes, size=120).astype(np.int32)
        p = rng.random((120, classes)) + np.eye(classes)[labels]
        p /= p.sum(axis=1, keepdims=True)
        stored = labels[:, None]
    np.savez(tmp_path / f"{name}.npz", test_labels=stored)
    expected = medmnist.Evaluator(name, "test", root=str(tmp_path)).evaluate(p)
    found = metrics.evaluate(p, labels, list(info["label"]), bootstrap=1)
    assert found["auc_ovr"] == pytest.approx(expected.AUC, abs=1e-12)
    assert found["accuracy"] == pytest.approx(expected.ACC, abs=1e-12)
    quick = metrics.quick(p, labels)
    assert quick["auc"] == pytest.approx(expected.AUC, abs=1e-12)
    assert quick["accuracy"] == pytest.approx(expected.ACC, abs=1e-12)


def test_intervals_contain_the_metrics_and_are_those_of_the_seed():
    p, y = example()
    found = metrics.evaluate(p, y, CLASSES, bootstrap=100, seed=3)
    assert found == metrics.evaluate(p, y, CLASSES, bootstrap=100, seed=3)
    for name in ("auc_ovr", "map", "accuracy", "f1_macro", "nll"):
        low, high = found["ci95"][name]
        assert low < found[name] < high
    low, high = found["per_class"]["a"]["auc_ci95"]
    assert low < found["per_class"]["a"]["auc"] < high
    # Few images, wide intervals.
    widths = [np.ptp(found["per_class"][name]["average_precision_ci95"]) for name in "ae"]
    assert widths[1] > widths[0]


def test_a_label_that_no_image_has_is_undefined_and_left_out_of_the_means():
    p, y = example()
    y[:, 4] = 0
    found = metrics.evaluate(p, y, CLASSES, bootstrap=5)
    row = found["per_class"]["e"]
    assert (row["auc"], row["average_precision"], row["recall"]) == (None, None, None)
    assert found["auc_ovr"] == pytest.approx(sklearn.metrics.roc_auc_score(y[:, :4], p[:, :4]))
    none = np.zeros_like(y)
    assert metrics.evaluate(p, none, CLASSES, bootstrap=5)["auc_ovr"] is None
    assert "auc" not in metrics.quick(p, none)


def test_quick_agrees_with_evaluate():
    p, y = example()
    full, quick = metrics.evaluate(p, y, CLASSES, bootstrap=1), multi_label.quick(p, y)
    names = {"loss": "nll", "auc": "auc_ovr"}
    assert quick == {name: full[names.get(name, name)] for name in quick}
    assert set(quick) == {"loss", "accuracy", "balanced_accuracy", "f1_macro", "auc", "ece"}


def test_reliability_counts_every_label_of_every_image():
    p, y = example()
    bins = metrics.reliability(p, y)
    assert sum(bins["count"]) == p.size
    total = sum(n * share for n, share in zip(bins["count"], bins["accuracy"], strict=True) if n)
    assert total == pytest.approx(y.sum())


def test_thresholds_have_the_best_f1_of_all():
    p, y = example(100, decimals=1)
    found = multi_label.fit_thresholds(p, y)
    at = multi_label.at_thresholds(p, y, CLASSES, found)
    for i, name in enumerate(CLASSES):
        best = max(
            sklearn.metrics.f1_score(y[:, i], p[:, i] > t, zero_division=0)
            for t in np.append(np.unique(p[:, i]) - 1e-6, 0.5)
        )
        assert at["per_class"][name]["f1"] == pytest.approx(best)
        assert at["per_class"][name]["threshold"] == found[i]
    assert at["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(y, p > found, average="macro"))
    assert at["subset_accuracy"] == sklearn.metrics.accuracy_score(y, p > found)


def test_a_threshold_that_no_probability_is_below_is_not_chosen():
    probabilities = np.array([[0.0], [0.0], [0.3], [0.2]], np.float32)
    labels = np.array([[1], [1], [1], [0]])
    (threshold,) = multi_label.fit_thresholds(probabilities, labels)
    # All would be best, but p > 0 leaves out two; of what is left, 0.3 alone is best.
    assert threshold == pytest.approx(0.25)


def test_the_threshold_of_a_label_that_all_or_no_images_have_is_a_half():
    p, y = example()
    y[:, 0], y[:, 1] = 1, 0
    assert multi_label.fit_thresholds(p, y)[:2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p[:0], y[:0]), "no images"),
        (lambda p, y: (p + 1, y), "probabilities must be in 0..1"),
        (lambda p, y: (np.full_like(p, np.nan), y), "probabilities must be in 0..1"),
        (lambda p, y: (p, y * 2), "labels must be 0 or 1"),
    ],
)
def test_wrong_values_are_refused(change, message):
    p, y = change(*example())
    with pytest.raises(ValueError, match=message):
        metrics.quick(p, y)


def test_wrong_numbers_of_names_and_resamples_are_refused():
    p, y = example()
    with pytest.raises(ValueError, match="4 names for 5 labels"):
        metrics.evaluate(p, y, CLASSES[:4])
    with pytest.raises(ValueError, match="bootstrap must be at least 1"):
        metrics.evaluate(p, y, CLASSES, bootstrap=0)


def test_calibration_errors_of_two_labels_do_not_cancel_out():
    rng = np.random.default_rng(0)
    p = 0.5 + rng.uniform(-0.02, 0.02, (2000, 2))
    labels = (rng.random((2000, 2)) < [0.8, 0.2]).astype(int)
    found = multi_label.evaluate(p, labels, ["a", "b"], bootstrap=10)["ece"]
    each = [multi_label.quick(p[:, [i]], labels[:, [i]])["ece"] for i in (0, 1)]
    assert found == pytest.approx(np.mean(each))
    assert found > 0.25


def test_labels_that_are_all_right_have_intervals_with_a_width():
    labels = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])
    found = multi_label.evaluate(labels * 0.8 + 0.1, labels, ["a", "b"], bootstrap=20)
    low, high = found["ci95"]["subset_accuracy"]
    assert found["ci95"]["accuracy"] == [low, high]
    assert 0.5 < low < 0.6
    assert high == 1
    assert found["ci95"]["auc_ovr"] is None
