import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bloodjax.losses import weighted_cross_entropy

WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0], np.float32)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(0, 5, (9, 4)).astype(np.float32), rng.integers(0, 4, 9).astype(np.int32)


def loss(logits, labels, weights=WEIGHTS, mask=None, smoothing=0.0):
    mask = np.ones(len(labels), bool) if mask is None else mask
    arrays = map(jnp.asarray, (logits, labels, weights, mask))
    return weighted_cross_entropy(*arrays, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_formula(batch, smoothing):
    logits, labels = batch
    targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    losses = -(targets * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
    total, count = loss(logits, labels, smoothing=smoothing)
    np.testing.assert_allclose(total, (losses * WEIGHTS[labels]).sum(), rtol=1e-5)
    assert count == 9


def test_the_mean_is_that_of_keras_with_class_weights(batch, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    logits, labels = batch
    reference = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        # As `fit(class_weight=...)`: the class's weight is the example's.
        expected = float(reference(labels, logits, sample_weight=WEIGHTS[labels]))
    total, count = loss(logits, labels)
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)


def test_padding_counts_for_nothing(batch):
    logits, labels = batch
    mask = np.arange(9) < 6
    total, count = loss(logits, labels, mask=mask)
    expected, _ = loss(logits[:6], labels[:6])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == 6


def test_bfloat16_logits_give_a_float32_loss(batch):
    logits, labels = batch
    rounded = jnp.asarray(logits, jnp.bfloat16)
    total, _ = loss(rounded, labels)
    assert total.dtype == jnp.float32
    expected, _ = loss(rounded.astype(jnp.float32), labels)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
