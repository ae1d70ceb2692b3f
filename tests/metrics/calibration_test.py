import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from bloodjax import metrics
from bloodjax.metrics import calibration
from bloodjax.metrics.calibration import NONE, TEMPERATURES, Calibration


def sample(n, classes=5, sharpness=1.0, seed=0):
    """Labels drawn from probabilities p, and predictions softmax(sharpness * log p)."""
    rng = np.random.default_rng(seed)
    logits = log_softmax(3 * rng.normal(size=(n, classes)), axis=1)
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return softmax(sharpness * logits, axis=1).astype(np.float32), labels


def loss(calibration_, probabilities, labels):
    """Log loss of the images, and of the least confident one with the runner-up as its label."""
    calibrated = calibration_.apply(probabilities.astype(np.float64))
    least = probabilities.max(axis=1).argmin()
    second = np.argsort(probabilities[least])[-2]
    true = [*calibrated[np.arange(len(labels)), labels], calibrated[least, second]]
    return -np.log(true).mean()


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_temperature_undoes_what_made_the_classifier_over_or_under_confident(sharpness):
    probabilities, labels = sample(20_000, sharpness=sharpness)
    found = calibration.fit_temperature(probabilities, labels)
    assert found.temperature == pytest.approx(sharpness, rel=0.05)
    new, new_labels = sample(20_000, sharpness=sharpness, seed=1)
    assert metrics.quick(found.apply(new), new_labels)["ece"] < 0.015


def test_temperature_is_the_best_of_a_grid():
    probabilities, labels = sample(300, sharpness=1.7)
    found = calibration.fit_temperature(probabilities, labels)
    grid = np.geomspace(*TEMPERATURES, 500)
    losses = [loss(Calibration("temperature", t), probabilities, labels) for t in grid]
    best = int(np.argmin(losses))
    assert grid[best - 1] <= found.temperature <= grid[best + 1]
    assert loss(found, probabilities, labels) <= losses[best] + 1e-9


@pytest.mark.full
def test_temperature_is_what_pytorch_s_lbfgs_finds():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    probabilities, labels = sample(4000, sharpness=2.0)
    logits = torch.from_numpy(np.log(probabilities.astype(np.float64)))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits * scale, torch.from_numpy(labels))
        value.backward()
        return value

    optimizer.step(closure)
    found = calibration.fit_temperature(probabilities, labels)
    assert found.temperature == pytest.approx(1 / scale.item(), rel=5e-3)


@pytest.mark.parametrize("n", [1, 30, 1000])
def test_a_perfect_validation_does_not_make_certain(n):
    # As label smoothing leaves it: always right, with a confidence of 0.9.
    labels = np.arange(n) % 8
    probabilities = np.where(np.arange(8) == labels[:, None], 0.9, 0.1 / 7)
    found = calibration.fit(probabilities, labels)
    assert found.method == "temperature"
    assert TEMPERATURES[0] < found.temperature < np.inf
    confidence = found.apply(probabilities).max(axis=1)
    np.testing.assert_allclose(confidence, n / (n + 1), atol=1e-4)


def test_the_loss_on_validation_does_not_rise_where_the_network_is_nearly_perfect():
    rng = np.random.default_rng(0)
    labels = rng.integers(8, size=1800)
    logits = 20.0 * np.eye(8)[labels] + 2 * rng.normal(size=(1800, 8))
    logits[:15] = 2 * rng.normal(size=(15, 8))  # a few that it cannot tell
    probabilities = softmax(logits, axis=1)
    after = calibration.fit_temperature(probabilities, labels).apply(probabilities)
    before = metrics.quick(probabilities, labels)["loss"]
    assert metrics.quick(after, labels)["loss"] < before + 1e-4


def test_only_wrong_answers_give_no_confidence():
    probabilities, _ = sample(50)
    found = calibration.fit_temperature(probabilities, probabilities.argmin(axis=1))
    assert found.temperature == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_temperature_never_changes_the_predicted_class_nor_the_dtype():
    probabilities, labels = sample(500, sharpness=2.0)
    after = calibration.fit(probabilities, labels, "temperature").apply(probabilities)
    assert after.dtype == probabilities.dtype
    np.testing.assert_array_equal(after.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)


def test_a_probability_of_zero_stays_finite():
    one_hot = np.eye(3, dtype=np.float32)
    assert np.isfinite(Calibration("temperature", 4.0).apply(one_hot)).all()
    assert np.isfinite(calibration.fit(one_hot, np.array([0, 1, 0])).temperature)


def biased(n, seed=0):
    """Predictions that over-rate class 0, and labels from the unbiased probabilities."""
    probabilities, labels = sample(n, seed=seed)
    logits = np.log(probabilities) + np.array([2.0, 0, 0, 0, -1])
    return softmax(logits, axis=1), labels


def test_vector_scaling_is_chosen_where_a_class_is_over_rated():
    probabilities, labels = biased(3000)
    gain, error = calibration.vector_gain(probabilities, labels)
    assert gain > 5 * error > 0
    found = calibration.fit(probabilities, labels)
    assert found.method == "vector"
    np.testing.assert_allclose(np.diff(found.bias)[[0, 3]], [2, 1], atol=0.4)
    new, new_labels = biased(3000, seed=1)
    simple = calibration.fit_temperature(probabilities, labels)
    losses = [metrics.quick(one.apply(new), new_labels)["loss"] for one in (found, simple)]
    assert losses[0] < losses[1] - 0.03


def test_temperature_is_chosen_where_vector_scaling_has_nothing_to_add():
    methods = {calibration.fit(*sample(200, sharpness=2, seed=s)).method for s in range(3)}
    assert methods == {"temperature"}


def test_vector_scaling_is_the_minimum_of_its_loss():
    probabilities, labels = biased(400)
    found = calibration.fit_vector(probabilities, labels)

    def penalised(one):
        penalty = np.square([*np.subtract(one.scale, 1), *one.bias]).sum() / 2 / (len(labels) + 1)
        return loss(one, probabilities, labels) + penalty

    best, rng = penalised(found), np.random.default_rng(0)
    for _ in range(30):
        bias, scale = (np.add(v, 0.02 * rng.normal(size=5)) for v in (found.bias, found.scale))
        other = Calibration("vector", found.temperature, tuple(bias), tuple(scale))
        assert penalised(other) > best - 1e-6


def test_a_class_without_images_is_not_suppressed():
    probabilities, labels = biased(1500)
    kept = labels != 3
    assert calibration.fit(probabilities, labels).method == "vector"
    assert calibration.fit(probabilities[kept], labels[kept]).method == "temperature"
    found = calibration.fit(probabilities[kept], labels[kept], "vector")
    assert found.bias[3] == 0
    others = [scale for i, scale in enumerate(found.scale) if i != 3]
    assert found.scale[3] == pytest.approx(np.mean(others))
    of_class = labels == 3
    recall = [
        (one[of_class].argmax(axis=1) == 3).mean()
        for one in (probabilities, found.apply(probabilities))
    ]
    assert recall[1] > recall[0] - 0.1


def test_none_changes_nothing():
    probabilities, labels = sample(20)
    found = calibration.fit(probabilities, labels, "none")
    assert found == NONE
    assert found.apply(probabilities) is probabilities


def test_few_images_never_choose_vector_scaling():
    probabilities, labels = biased(4)
    assert calibration.vector_gain(probabilities, labels) == (0.0, np.inf)
    assert calibration.fit(probabilities, labels).method == "temperature"


def test_nothing_to_fit_to_and_an_unknown_method():
    with pytest.raises(ValueError, match="no images"):
        calibration.fit(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="isotonic"):
        calibration.fit(*sample(3), "isotonic")


def test_the_json_form_gives_the_same_calibration():
    found = calibration.fit_vector(*biased(100))
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for change in ({"method": "x"}, {"temperature": 0}, {"bias": [float("nan")]}):
        with pytest.raises(ValueError, match=r"method 'x'|temperature 0|not finite"):
            Calibration.from_dict(found.to_dict() | change)


def test_the_same_seed_gives_the_same_folds():
    probabilities, labels = biased(200)
    assert calibration.vector_gain(probabilities, labels, 3) == calibration.vector_gain(
        probabilities, labels, 3
    )


def test_a_method_is_chosen_by_its_gain_only_if_it_is_left_open():
    assert calibration.choose("none", 1, lambda: (9.0, 1.0)) == "none"
    clear = calibration.CLEARLY
    assert calibration.choose("auto", 9, lambda: (clear + 0.1, 1.0)) == "vector"
    assert calibration.choose("auto", 9, lambda: (clear - 0.1, 1.0)) == "temperature"
    assert calibration.choose("auto", 9, lambda: (0.0, np.inf)) == "temperature"


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_refinement_is_the_lowest_loss_of_any_temperature(sharpness):
    probabilities, labels = sample(2_000, sharpness=sharpness)
    logits = np.log(probabilities.astype(np.float64))
    grid = [log_loss(labels, softmax(logits / t, axis=1)) for t in np.geomspace(0.1, 10, 401)]
    found = calibration.refinement(probabilities, labels)
    # The fit sees one image more (see the module).
    assert found == pytest.approx(min(grid), abs=1e-4)
    assert metrics.quick(probabilities, labels)["refinement"] == found


def test_an_epoch_that_is_less_confident_and_right_more_often_has_the_lower_refinement():
    worse, labels = sample(5_000, sharpness=0.5)
    better = softmax(0.3 * np.log(sample(5_000)[0]) + 0.05 * np.eye(5)[labels], axis=1)
    before, after = metrics.quick(worse, labels), metrics.quick(better, labels)
    assert after["accuracy"] > before["accuracy"]
    assert after["loss"] > before["loss"]
    assert after["refinement"] < before["refinement"]


def test_refinement_without_a_mistake_is_finite_and_small():
    probabilities = softmax(5 * np.eye(3), axis=1)
    assert 0 < calibration.refinement(probabilities, np.arange(3)) < 1
