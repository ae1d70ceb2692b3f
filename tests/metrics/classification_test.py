import json
import time

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from bloodjax import metrics
from bloodjax.metrics import classification, resampling

CLASSES = tuple("abcdefgh")
SCALARS = {
    "accuracy",
    "balanced_accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "auc_ovr",
    "nll",
    "ece",
    "brier",
    "precision_at_50",
    "recall_at_50",
}


def _made_up(n: int, *, seed: int = 0, classes: int = 8, skill: float = 2.0, decimals: int = 12):
    """Probabilities and labels of a mediocre classifier; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 1.5
    logits[np.arange(n), labels] += skill
    probabilities = softmax(logits, axis=1).round(decimals)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("decimals", [12, 2])
def test_scalars_equal_scikit_learn(decimals):
    probabilities, labels = _made_up(500, decimals=decimals)
    predicted = probabilities.argmax(axis=1)
    found = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "n": 500,
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "precision_macro": reference.precision_score(labels, predicted, **macro),
        "recall_macro": reference.recall_score(labels, predicted, **macro),
        "f1_macro": reference.f1_score(labels, predicted, **macro),
        "auc_ovr": reference.roc_auc_score(labels, probabilities, multi_class="ovr"),
    }
    if decimals == 12:  # scikit-learn clips probabilities of 0 differently.
        expected["nll"] = reference.log_loss(labels, probabilities)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    np.testing.assert_array_equal(
        found["confusion_matrix"], reference.confusion_matrix(labels, predicted)
    )


def test_float32_gives_the_same():
    probabilities, labels = _made_up(300)
    double = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    single = metrics.evaluate(probabilities.astype(np.float32), labels, CLASSES, bootstrap=1)
    for name in SCALARS:
        assert single[name] == pytest.approx(double[name], rel=1e-5), name


def test_per_class_equals_scikit_learn():
    probabilities, labels = _made_up(500)
    found = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)["per_class"]
    expected = reference.precision_recall_fscore_support(labels, probabilities.argmax(axis=1))
    assert list(found) == list(CLASSES)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in found.values()], values)
    for row in found.values():
        for name in ("precision", "recall", "f1"):
            low, high = row[f"{name}_ci95"]
            assert low < row[name] < high


def test_precision_and_recall_at_50_are_keras_formulas():
    probabilities, labels = _made_up(400)
    true = np.eye(8)[labels]
    claimed = np.where(probabilities > 0.5, 1.0, 0.0)
    found = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    assert found["precision_at_50"] == pytest.approx((true * claimed).sum() / claimed.sum())
    assert found["recall_at_50"] == pytest.approx((true * claimed).sum() / true.sum())


def test_no_claim_at_50_has_precision_zero():
    found = metrics.evaluate(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), "ab", bootstrap=5)
    assert (found["precision_at_50"], found["recall_at_50"]) == (0, 0)


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    found = metrics.evaluate(probabilities, labels, "ab", bootstrap=1)
    # Bins of 1/15: 0.6 is the top of (8/15, 9/15], then 0.7, then both of 0.9, one of them correct.
    assert found["ece"] == pytest.approx((0.4 + 0.3 + 2 * 0.4) / 4)
    assert found["brier"] == pytest.approx((0.02 + 1.62 + 0.18 + 0.32) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.6]).mean())


def test_reliability_by_hand():
    probabilities = np.array([[0.9, 0.1], [1.0, 0.0], [0.3, 0.7], [0.5, 0.5]])
    found = metrics.reliability(probabilities, np.array([0, 1, 1, 1]), bins=4)
    assert found["count"] == [0, 1, 1, 2]
    assert found["confidence"] == [None, 0.5, pytest.approx(0.7), pytest.approx(0.95)]
    assert found["accuracy"] == [None, 0.0, 1.0, 0.5]


def test_reliability_adds_up_to_ece():
    probabilities, labels = _made_up(700)
    found = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    bins = found["reliability"]
    gaps = [
        count * abs(confidence - accuracy)
        for count, confidence, accuracy in zip(*bins.values(), strict=True)
        if count
    ]
    assert found["ece"] == pytest.approx(sum(gaps) / 700)


def test_a_float32_confidence_is_in_one_bin_for_all_figures():
    # 0.6 in float32 is above 9/15, but 15 times it is rounded to 9.
    probabilities = np.float32([[0.6, 0.4], [0.58, 0.42]])
    found = metrics.evaluate(probabilities, np.array([0, 1]), "ab", bootstrap=1)
    assert found["reliability"]["count"][8:10] == [1, 1]
    assert found["ece"] == pytest.approx((0.4 + 0.58) / 2)


def test_impossible_truth_costs_a_finite_nll():
    found = metrics.evaluate(np.array([[1.0, 0.0]]), np.array([1]), "ab", bootstrap=1)
    assert found["nll"] == pytest.approx(-np.log(1e-7))


def test_absent_classes_follow_scikit_learn():
    probabilities, labels = _made_up(300)
    probabilities[:, 6] = 0  # Class g: among the labels, never predicted.
    probabilities[:, 7] = 0  # Class h: neither.
    labels[labels == 7] = 1
    labels[labels == 5] = 0  # Class f: predicted, not among the labels.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    assert set(predicted) == {0, 1, 2, 3, 4, 5}

    found = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=20)
    macro = {"average": "macro", "zero_division": 0}
    assert found["precision_macro"] == pytest.approx(
        reference.precision_score(labels, predicted, **macro)
    )
    assert found["recall_macro"] == pytest.approx(
        reference.recall_score(labels, predicted, **macro)
    )
    assert found["f1_macro"] == pytest.approx(reference.f1_score(labels, predicted, **macro))
    present = np.unique(labels)
    assert found["balanced_accuracy"] == pytest.approx(
        reference.recall_score(labels, predicted, labels=present, **macro)
    )
    areas = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in present]
    assert found["auc_ovr"] == pytest.approx(np.mean(areas))

    rows = found["per_class"]
    assert rows["f"]["recall"] is None
    assert rows["f"]["precision"] == 0
    assert rows["g"]["precision"] is None
    assert rows["g"]["recall"] == 0
    assert rows["h"] == {
        "support": 0,
        **dict.fromkeys(f"{m}{s}" for m in ("precision", "recall", "f1") for s in ("", "_ci95")),
    }
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("right", [True, False])
def test_if_all_or_none_are_right_the_accuracy_still_has_an_interval(right):
    labels = np.arange(24) % 2
    probabilities = np.eye(2)[labels if right else 1 - labels] * 0.8 + 0.1
    found = metrics.evaluate(probabilities, labels, "ab", bootstrap=20)
    assert found["accuracy"] == right
    assert found["ci95"]["accuracy"] == list(metrics.wilson_interval(24 * right, 24))
    assert found["ci95"]["f1_macro"] is None
    assert found["ci95"]["balanced_accuracy"][0 if right else 1] not in (0, 1)


def test_a_single_class_has_no_auc():
    found = metrics.evaluate(np.array([[0.9, 0.1]] * 3), np.zeros(3, int), "ab", bootstrap=20)
    assert found["auc_ovr"] is None
    assert found["ci95"]["auc_ovr"] is None
    assert found["accuracy"] == 1
    json.dumps(found, allow_nan=False)


def test_bootstrap_is_the_metrics_of_resampled_images(monkeypatch):
    """The metrics of a resample equal those of a set with these images repeated."""
    probabilities, labels = _made_up(200, decimals=2)
    counts = np.bincount(np.random.default_rng(5).integers(200, size=200), minlength=200)
    monkeypatch.setattr(
        resampling, "draw_counts", lambda *_, **__: iter([counts[:, None].astype(np.float64)])
    )
    found = classification.Statistics(probabilities, labels).resampled(1, seed=0)
    monkeypatch.undo()
    repeated = metrics.evaluate(
        probabilities.repeat(counts, axis=0), labels.repeat(counts), CLASSES, bootstrap=1
    )
    assert set(found) == SCALARS
    for name, values in found.items():
        assert values.tolist() == pytest.approx([repeated[name]]), name


@pytest.mark.parametrize(("n", "wrong"), [(100, 1), (1000, 1), (1000, 0), (20, 20)])
def test_the_interval_of_the_accuracy_is_wilson_s(n, wrong):
    labels = np.zeros(n, int)
    probabilities = np.tile([0.9, 0.1], (n, 1))
    probabilities[:wrong] = [0.1, 0.9]
    found = metrics.evaluate(probabilities, labels, "ab", bootstrap=20)["ci95"]["accuracy"]
    assert found == list(metrics.wilson_interval(n - wrong, n))


def test_the_interval_of_the_calibration_error_contains_it():
    rng = np.random.default_rng(0)
    low = []
    for _ in range(20):  # of perfectly calibrated predictions
        probabilities = rng.dirichlet([1.0] * 4, 300)
        labels = (rng.random((300, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
        found = metrics.evaluate(probabilities, labels, "abcd", bootstrap=100)
        limits = found["ci95"]["ece"]
        assert limits[0] <= found["ece"] <= limits[1]
        low.append(limits[0])
    assert np.median(low) < 0.01


@pytest.mark.parametrize("few", [3, 13])
def test_a_class_of_few_images_widens_the_intervals_of_mean_recalls(few):
    labels = np.repeat([0, 1], (1000, few))
    found = metrics.evaluate(np.eye(2)[labels] * 0.98 + 0.01, labels, "ab", bootstrap=50)
    low, high = metrics.wilson_interval(few, few)
    row = found["per_class"]["b"]
    assert row["recall_ci95"] == [low, high]
    assert low < {3: 0.45, 13: 0.78}[few]
    for name in ("balanced_accuracy", "recall_macro"):
        assert found["ci95"][name][0] == pytest.approx(1 - (1 - low) / 2, abs=0.001)
        assert found["ci95"][name][1] == 1
    named = classification.few_images(found["per_class"])
    assert named == f"b ({few} images, recall {low:.2f} to 1.00)"


def test_classes_of_enough_images_or_of_none_are_not_few():
    rows = [metrics.wilson_interval(n, n) if n else None for n in (1, 20, 0)]
    per_class = {
        name: {"support": n, "recall_ci95": interval}
        for name, n, interval in zip("abc", (1, 20, 0), rows, strict=True)
    }
    assert classification.few_images(per_class).startswith("a (1 image, recall 0.21 to 1.00")
    assert classification.few_images({"b": per_class["b"], "c": per_class["c"]}) == ""


def test_bootstrap_does_not_depend_on_the_size_of_its_chunks(monkeypatch):
    probabilities, labels = _made_up(100)
    in_one_chunk = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=400)["ci95"]
    monkeypatch.setattr(resampling, "MAX_ENTRIES", 100 * 30)
    chunked = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=400)["ci95"]
    for name in SCALARS:
        width = in_one_chunk[name][1] - in_one_chunk[name][0]
        np.testing.assert_allclose(chunked[name], in_one_chunk[name], atol=0.25 * width)


def test_bootstrap_is_reproducible():
    probabilities, labels = _made_up(100)
    first, again, other = (
        metrics.evaluate(probabilities, labels, CLASSES, bootstrap=50, seed=seed)["ci95"]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_bootstrap_intervals_cover_the_truth():
    """For 200 samples of a population, about 95 % of the intervals contain its accuracy and NLL."""
    truth = metrics.quick(*_made_up(200_000))
    covered = {"accuracy": 0, "nll": 0}
    for seed in range(1, 201):
        ci95 = metrics.evaluate(*_made_up(150, seed=seed), CLASSES, bootstrap=300)["ci95"]
        covered["accuracy"] += ci95["accuracy"][0] <= truth["accuracy"] <= ci95["accuracy"][1]
        covered["nll"] += ci95["nll"][0] <= truth["loss"] <= ci95["nll"][1]
    assert 0.89 * 200 <= covered["accuracy"] <= 0.99 * 200
    assert 0.89 * 200 <= covered["nll"] <= 0.99 * 200


def test_evaluate_is_quick_on_bloodmnist_size():
    probabilities, labels = _made_up(3421)
    start = time.process_time()
    metrics.evaluate(probabilities, labels, CLASSES)
    assert time.process_time() - start < 6


def test_quick_is_a_part_of_evaluate():
    probabilities, labels = _made_up(200)
    full = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    full |= {"loss": full["nll"], "auc": full["auc_ovr"]}
    found = classification.quick(probabilities, labels)
    names = {"loss", "accuracy", "balanced_accuracy", "f1_macro", "auc", "ece"}
    assert set(found) == names
    assert found == {name: full[name] for name in found}


@pytest.mark.parametrize(
    ("probabilities", "labels", "complaint"),
    [
        (np.zeros((0, 2)), [], "no images"),
        ([[0.5, 0.5]], [2], "labels"),
        ([[0.5, 0.5]], [-1], "labels"),
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[1.5, -0.5]], [0], "at least 0"),
        ([[np.nan, 1.0]], [0], "sum to 1"),
    ],
)
def test_impossible_input_is_rejected(probabilities, labels, complaint):
    probabilities, labels = np.asarray(probabilities), np.asarray(labels, int)
    for measure in (
        metrics.quick,
        metrics.reliability,
        lambda p, y: metrics.evaluate(p, y, "ab"),
    ):
        with pytest.raises(ValueError, match=complaint):
            measure(probabilities, labels)


def test_class_names_and_resamples_must_fit():
    probabilities, labels = _made_up(10)
    with pytest.raises(ValueError, match="7 class names for 8"):
        metrics.evaluate(probabilities, labels, CLASSES[:7])
    with pytest.raises(ValueError, match="bootstrap"):
        metrics.evaluate(probabilities, labels, CLASSES, bootstrap=0)


def test_scores_of_a_class_without_images_or_predictions_are_undefined():
    found = metrics.classification.scores_of_class(0, 0, 0)
    assert found.pop("support") == 0
    assert set(found.values()) == {None}
    found = metrics.classification.scores_of_class(0, 3, 0)
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, None, 0.0)
