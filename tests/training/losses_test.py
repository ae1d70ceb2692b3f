import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax, softmax

from bloodjax.training.losses import (
    adjust_logits,
    distillation_loss,
    focal_loss,
    jensen_shannon,
    weighted_cross_entropy,
)

WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0], np.float32)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(0, 5, (9, 4)).astype(np.float32), rng.integers(0, 4, 9).astype(np.int32)


@pytest.fixture
def mixed(batch):
    """Logits, and targets that mix two classes each, as MixUp makes them."""
    logits, labels = batch
    share = np.linspace(0.5, 1.0, 9, dtype=np.float32)[:, None]
    one_hot = np.eye(4, dtype=np.float32)
    return logits, share * one_hot[labels] + (1 - share) * one_hot[labels[::-1]]


def loss(logits, targets, weights=WEIGHTS, mask=None, smoothing=0.0, gamma=0.0):
    """The loss of `targets`, or of hard labels."""
    if targets.ndim == 1:
        targets = np.eye(4, dtype=np.float32)[targets]
    mask = np.ones(len(targets), bool) if mask is None else mask
    arrays = map(jnp.asarray, (logits, targets, weights, mask))
    return weighted_cross_entropy(*arrays, smoothing, gamma)


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


def test_the_weight_of_an_example_scales_its_loss(batch):
    logits, labels = batch
    weights = np.linspace(0, 2, 9, dtype=np.float32)
    each = [loss(logits[i : i + 1], labels[i : i + 1])[0] for i in range(9)]
    total, _ = loss(logits, labels, mask=weights)
    np.testing.assert_allclose(total, np.dot(weights, each), rtol=1e-5)


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


def test_a_hard_label_has_its_class_s_weight_to_the_bit():
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.1, 9, 7).astype(np.float32)
    one_hot = np.eye(7, dtype=np.float32)
    # Even logits: every example's loss is log 7 times its weight.
    found = [loss(np.zeros((1, 7), np.float32), one_hot[i : i + 1], weights)[0] for i in range(7)]
    even, _ = loss(np.zeros((1, 7), np.float32), one_hot[:1], np.ones(7, np.float32))
    np.testing.assert_array_equal(found, weights * np.float32(even))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixtures_are_those_of_torch(mixed, smoothing):
    torch = pytest.importorskip("torch")
    logits, targets = mixed
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(targets),
        reduction="none",
        label_smoothing=smoothing,
    ).numpy()
    expected = (losses * (targets @ WEIGHTS)).sum()  # by the targets before smoothing
    np.testing.assert_allclose(loss(logits, targets, smoothing=smoothing)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_loss_is_the_formula(mixed, gamma):
    logits, targets = mixed
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    expected = -(targets * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)
    found = focal_loss(jnp.asarray(logits), jnp.asarray(targets), gamma)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    if gamma:
        total, _ = loss(logits, targets, gamma=gamma)
        np.testing.assert_allclose(total, (expected * (targets @ WEIGHTS)).sum(), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_is_that_of_keras(mixed, smoothing, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    logits, targets = mixed
    logits = logits / 4  # Keras cuts probabilities off at 1e-7
    reference = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=2.0, from_logits=True, label_smoothing=smoothing, reduction="sum"
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = float(reference(targets, logits))
    ones = np.ones(4, np.float32)
    found, _ = loss(logits, targets, ones, smoothing=smoothing, gamma=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_loss_without_gamma_is_cross_entropy(mixed):
    logits, targets = map(jnp.asarray, mixed)
    total = jnp.sum(focal_loss(logits, targets, 0.0) * (targets @ jnp.asarray(WEIGHTS)))
    np.testing.assert_allclose(total, loss(*mixed)[0], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_gradient_of_focal_loss(mixed, gamma):
    logits, targets = jnp.asarray(mixed[0] / 4), jnp.asarray(mixed[1])
    check_grads(
        lambda x: focal_loss(jnp.asarray(x), targets, gamma),
        (logits,),
        order=1,
        modes=["rev"],
        eps=1e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_focal_loss_is_finite_where_the_answer_is_sure(gamma):
    targets = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    logits = jnp.asarray([[90.0, -90.0], [90.0, -90.0]])
    found = jax.grad(lambda x: focal_loss(x, targets, gamma).sum())(logits)
    np.testing.assert_allclose(found[0], 0, atol=1e-6)
    np.testing.assert_allclose(found[1], [1, -1], atol=1e-6)


def test_adjusted_logits_are_shifted(batch):
    logits, _ = map(jnp.asarray, batch)
    shift = (-0.5, -1.0, -2.0, -4.0)
    np.testing.assert_allclose(adjust_logits(logits, shift), batch[0] + np.array(shift), rtol=1e-6)
    assert adjust_logits(logits, ()) is logits


def test_a_shift_by_the_prior_makes_the_rare_class_win():
    # Two classes that no image tells apart, nine to one: the best logits under the shifted loss
    # are equal, as the best ones for the balanced error are.
    targets = jnp.eye(2)[jnp.asarray([0] * 9 + [1])]
    shift = tuple(np.log([0.9, 0.1]).tolist())
    ones = jnp.ones(10, bool)

    def objective(logits):
        every = jnp.broadcast_to(adjust_logits(logits[None], shift), (10, 2))
        total, count = weighted_cross_entropy(every, targets, jnp.ones(2), ones)
        return total / count

    np.testing.assert_allclose(jax.grad(objective)(jnp.zeros(2)), 0, atol=1e-6)


@pytest.fixture
def views():
    """Logits of three views of nine examples; one example is sure, one has equal views."""
    logits = np.random.default_rng(2).normal(0, 3, (9, 3, 4)).astype(np.float32)
    logits[0] = [[90, 0, 0, 0], [0, 90, 0, 0], [90, 0, 0, 0]]
    logits[1] = logits[1, :1]
    return logits


def test_the_consistency_is_the_jensen_shannon_divergence(views):
    p = softmax(views.astype(np.float64), axis=-1)
    mean = np.clip(p.mean(1, keepdims=True), 1e-7, 1)
    logs = log_softmax(views.astype(np.float64), axis=-1) - np.log(mean)
    found = jensen_shannon(jnp.asarray(views))
    np.testing.assert_allclose(found, (p * logs).sum(-1).mean(1), rtol=1e-4, atol=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-6)
    assert found.max() <= np.log(3)


def test_the_consistency_is_that_of_augmix(views):
    torch = pytest.importorskip("torch")
    p = [torch.softmax(torch.tensor(views[:, view]), dim=1) for view in range(3)]
    mixture = torch.clamp(sum(p) / 3, 1e-7, 1).log()
    each = [torch.nn.functional.kl_div(mixture, one, reduction="batchmean") for one in p]
    found = jensen_shannon(jnp.asarray(views)).mean()
    np.testing.assert_allclose(found, float(sum(each) / 3), rtol=1e-5)


def test_the_gradient_of_the_consistency(views):
    check_grads(
        lambda x: jensen_shannon(jnp.asarray(x)),
        (jnp.asarray(views[2:] / 4),),
        order=1,
        modes=["rev"],
        eps=1e-2,
        rtol=2e-2,
    )
    slope = jax.grad(lambda x: jensen_shannon(x).sum())(jnp.asarray(views[:1]))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_that_of_torch(batch, temperature):
    torch = pytest.importorskip("torch")
    logits = batch[0]
    teacher = softmax(np.random.default_rng(3).normal(0, 2, (9, 4)), axis=-1).astype(np.float32)
    teacher[0] = [1, 0, 0, 0]
    log_p = torch.log_softmax(torch.tensor(logits) / temperature, dim=1)
    expected = torch.nn.functional.kl_div(log_p, torch.tensor(teacher), reduction="none").sum(1)
    found = distillation_loss(jnp.asarray(logits), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, temperature**2 * expected.numpy(), rtol=2e-5, atol=1e-6)


def test_a_student_like_its_teacher_has_no_distillation_loss(batch):
    logits = batch[0]
    teacher = jnp.asarray(softmax(logits / 3, axis=-1))
    np.testing.assert_allclose(distillation_loss(jnp.asarray(logits), teacher, 3.0), 0, atol=1e-5)
