import jax
import numpy as np
import pytest

from bloodjax.adaptation import linear_head
from bloodjax.adaptation.linear_head import Cells, Layer
from bloodjax.evaluation import classifier

from ..trees import assert_trees_equal

CENTRES = 3 * np.eye(3, 5)
OLD = Layer(CENTRES.T.copy(), np.zeros(3))
SHARES, ALL = np.full(3, 1 / 3), np.ones(3, bool)


def cells(labels, shift=0.0, views=1, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.3, (len(labels), views, 5))
    return Cells(CENTRES[labels][:, None] + noise + shift, np.array(labels))


HOME = cells(np.arange(60) % 3, seed=1)


def accuracy(layer, some):
    return np.mean(layer.logits(some.inputs[:, 0]).argmax(axis=1) == some.labels)


class TestFit:
    # At the site, cells of the class 0 look like those of the class 1 at home.
    shift = np.array([-3.0, 3.0, 0.0, 0.0, 2.0])

    def test_learns_the_site_and_keeps_home(self):
        there = cells([0] * 40, self.shift, views=2, seed=2)
        assert accuracy(OLD, there) < 0.2
        layer = linear_head.fit(OLD, there.take(np.arange(12)), HOME, SHARES, ALL)
        assert accuracy(layer, there) > 0.9
        assert accuracy(layer, HOME) == 1.0
        np.testing.assert_array_equal(layer.bias, OLD.bias)

    def test_changes_nothing_that_is_right(self):
        layer = linear_head.fit(OLD, cells([0, 1, 2] * 5, seed=3), HOME, SHARES, ALL)
        assert np.abs(layer.kernel - OLD.kernel).max() < 0.1

    def test_learns_nothing_about_classes_that_cannot_occur(self):
        there = cells([0] * 4, self.shift, seed=2)
        layer = linear_head.fit(OLD, there, HOME, SHARES, np.array([True, False, True]))
        change = np.abs(layer.kernel - OLD.kernel).max(axis=0)
        assert change[1] < 0.01 < 0.1 < change[0]

    def test_the_shares_of_the_labelled_cells_are_not_learned(self):
        """Nothing but the class tells the cells apart, so the answer is the share in training."""
        blind = Layer(np.zeros((5, 2)), np.log([0.8, 0.2]))
        constant = np.ones((100, 1, 5))
        labels = np.arange(100) % 2
        home = Cells(constant * np.random.default_rng(0).normal(1, 0.01, (100, 1, 1)), labels)
        layer = linear_head.fit(
            blind, Cells(constant, labels), home, np.array([0.8, 0.2]), np.ones(2, bool)
        )
        logits = layer.logits(np.ones(5))
        assert np.exp(logits[0] - logits[1]) == pytest.approx(4, rel=0.01)


def test_the_layer_of_a_network_is_read_and_replaced(trained):
    """The tiny run has a hidden layer, so the last one does not get the features."""
    model = classifier.load(trained)
    variables = jax.device_get(model.predictor.variables)
    layer = linear_head.of_network(variables)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    features, logits = model.describe(images)
    found = linear_head.inputs(model, features)
    assert found.shape == (3, 16) != features.shape
    np.testing.assert_allclose(layer.logits(found), logits, atol=1e-4)
    assert_trees_equal(linear_head.into_network(layer, variables), variables)
