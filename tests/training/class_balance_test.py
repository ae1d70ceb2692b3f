import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from bloodjax.errors import UserError
from bloodjax.training import class_balance

BLOODMNIST_COUNTS = np.array([852, 2181, 1085, 2026, 849, 993, 2330, 1643])
COUNTS = (90, 9, 1)
LABELS = np.repeat(np.arange(3), COUNTS).astype(np.int32)


def test_balanced_class_weights_of_bloodmnist():
    labels = np.repeat(np.arange(8), BLOODMNIST_COUNTS)
    weights = class_balance.balanced_class_weights(np.random.default_rng(0).permutation(labels), 8)
    np.testing.assert_allclose(weights, 11959 / (8 * BLOODMNIST_COUNTS), rtol=1e-6)


@pytest.mark.parametrize("labels", [[0, 2, 2], [0, 1, 2, 3]])
def test_balanced_class_weights_reject_missing_and_unknown_classes(labels):
    with pytest.raises(ValueError, match="3"):
        class_balance.balanced_class_weights(np.array(labels), 3)


def test_balanced_class_weights_are_scikit_learn_s():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    found = class_balance.balanced_class_weights(LABELS, 3)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_the_effective_number_of_samples(beta):
    # In the paper's proposition it is the sum of a geometric series, one term an image.
    numbers = [sum(beta**i for i in range(count)) for count in COUNTS]
    found = class_balance.effective_class_weights(LABELS, 3, beta)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found * numbers, found[2] * numbers[2], rtol=1e-5)
    np.testing.assert_allclose(found.sum(), 3, rtol=1e-6)


def test_the_ends_of_beta():
    np.testing.assert_array_equal(class_balance.effective_class_weights(LABELS, 3, 0.0), np.ones(3))
    near = class_balance.effective_class_weights(LABELS, 3, 1 - 1e-9)
    inverse = class_balance.balanced_class_weights(LABELS, 3)
    np.testing.assert_allclose(near / near[0], inverse / inverse[0], rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_class_without_pictures(beta):
    with pytest.raises(ValueError, match=r"counts \[90, 9, 1, 0\]"):
        class_balance.effective_class_weights(LABELS, 4, beta)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, class_balance.balanced_class_weights(LABELS, 3)),
        ({"loss.class_weights": "none"}, np.ones(3)),
        (
            {"loss.class_weights": "effective", "loss.effective_beta": 0.9},
            class_balance.effective_class_weights(LABELS, 3, 0.9),
        ),
        ({"data.sampling": "balanced"}, np.ones(3)),
        ({"data.sampling": "0.3"}, np.ones(3)),
        ({"loss.logit_adjustment": 0.5}, np.ones(3)),
    ],
)
def test_weights_as_the_config_has_them(changes, expected, make_config):
    found = class_balance.class_weights(make_config(**changes), LABELS, 3)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_the_shift_of_logits(make_config):
    assert class_balance.logit_shift(make_config(), LABELS, 3) == ()
    found = class_balance.logit_shift(make_config(**{"loss.logit_adjustment": 0.5}), LABELS, 3)
    np.testing.assert_allclose(found, 0.5 * np.log([0.9, 0.09, 0.01]), rtol=1e-6)


def test_logits_are_not_shifted_where_classes_are_drawn_evenly(make_config):
    message = r"config\.loss\.logit_adjustment is 1\.0, expected 0\.0 with config\.data\.sampling"
    for even in ("balanced", "0"):
        with pytest.raises(UserError, match=message):
            make_config(**{"loss.logit_adjustment": 1.0, "data.sampling": even})


def test_the_shift_is_by_the_frequencies_after_sampling(make_config):
    changes = {"loss.logit_adjustment": 1.0, "data.sampling": "sqrt"}
    found = class_balance.logit_shift(make_config(**changes), LABELS, 3)
    frequencies = np.sqrt([90, 9, 1]) / np.sqrt([90, 9, 1]).sum()
    np.testing.assert_allclose(found, np.log(frequencies), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss.class_weights": "none"}, [0.75, 0.25]),
        ({"loss.class_weights": "balanced"}, [0.5, 0.5]),
        ({"loss.class_weights": "effective", "loss.effective_beta": 0.0}, [0.75, 0.25]),
        ({"loss.logit_adjustment": 1.0}, [0.5, 0.5]),
        ({"loss.logit_adjustment": 0.5}, [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]),
        ({"data.sampling": "balanced"}, [0.5, 0.5]),
        ({"data.sampling": "sqrt"}, [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]),
    ],
)
def test_the_shares_that_probabilities_are_right_for(changes, expected, make_config):
    labels = np.repeat([0, 1], [30, 10])
    found = class_balance.implied_shares(make_config(**changes), labels, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_class_without_images_is_not_expected(make_config):
    config = make_config(**{"loss.class_weights": "none"})
    found = class_balance.implied_shares(config, np.repeat([0, 1], [30, 10]), 3)
    np.testing.assert_allclose(found, [0.75, 0.25, 0])


def test_the_statement_says_how_often_an_image_is_shown(make_config):
    classes = ("a", "b", "c")
    assert class_balance.sampling_statement(make_config(), LABELS, classes) == ""
    changes = {"batch_size": 8, "data.sampling": "balanced"}
    line = class_balance.sampling_statement(make_config(**changes), LABELS, classes)
    assert line == (
        "sampling balanced: an epoch shows an image of c (1 image) 32.0 times and an image of a "
        "(90 images) 0.4 times, each time augmented anew"
    )
    changes["augment"] = "none"
    line = class_balance.sampling_statement(make_config(**changes), LABELS, classes)
    assert line.endswith("0.4 times")


def test_a_label_that_all_images_have_is_still_learnt():
    labels = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(class_balance.positive_weights(labels), np.float32([1, 2, 2]))
