import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.augment import tta
from bloodjax.augment.mix import mix
from bloodjax.augment.policy import parse
from bloodjax.data.batches import Batch, DeviceDataset, StackedBatches, gather, nth
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import class_balance, factory, gradients, losses
from bloodjax.training.objectives import MULTI_CLASS, MULTI_LABEL
from bloodjax.training.step_config import Phase, StepConfig
from bloodjax.training.step_input import prepare_batch


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 3
    targets = (rng.random((6, 4)) < 0.4).astype(np.float32)
    weights = np.array([1.0, 3.0, 0.5, 10.0], np.float32)
    return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights), jnp.ones(6, bool)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_torch(batch, smoothing):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits, targets, weights, mask = batch
    smooth = np.asarray(targets) * (1 - smoothing) + smoothing / 2
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(np.asarray(weights)))(
        torch.tensor(np.asarray(logits)), torch.tensor(smooth)
    )
    total = losses.binary_cross_entropy(logits, targets, weights, mask, smoothing)
    assert float(total) / 6 == pytest.approx(float(expected), rel=1e-6)


def test_the_loss_is_that_of_optax_without_weights(batch):
    logits, targets, _, mask = batch
    expected = optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=1).sum()
    found = losses.binary_cross_entropy(logits, targets, jnp.ones(4), mask)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_the_focal_loss_is_that_of_optax(batch):
    logits, targets, _, mask = batch
    expected = optax.sigmoid_focal_loss(logits, targets, gamma=2.0).mean(axis=1).sum()
    found = losses.binary_cross_entropy(logits, targets, jnp.ones(4), mask, focal_gamma=2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_are_finite_where_the_answer_is_sure():
    logits = jnp.array([[200.0, -200.0, 200.0, -200.0]])
    targets, ones = jnp.array([[1.0, 0.0, 0.0, 1.0]]), jnp.ones(4)

    def loss(logits):
        return losses.binary_cross_entropy(
            logits, targets, ones, jnp.ones(1, bool), focal_gamma=2.0
        )

    assert np.isfinite(jax.grad(loss)(logits)).all()


def test_padding_and_the_weights_of_examples(batch):
    logits, targets, weights, _ = batch
    each = [
        float(losses.binary_cross_entropy(logits, targets, weights, jnp.arange(6) == i))
        for i in range(6)
    ]
    found = losses.binary_cross_entropy(logits, targets, weights, jnp.array([0.0, 2, 0, 1, 0, 0]))
    assert float(found) == pytest.approx(2 * each[1] + each[3], rel=1e-6)


def test_positive_weights_balance_each_label(make_config):
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], np.int32)
    np.testing.assert_allclose(class_balance.positive_weights(labels), [3.0, 1.0])
    weights = {
        name: class_balance.class_weights(
            make_config(**{"data.task": "multi-label", "loss.class_weights": name}), labels, 2
        ).tolist()
        for name in ("none", "balanced")
    }
    assert weights == {"none": [1.0, 1.0], "balanced": [3.0, 1.0]}
    with pytest.raises(ValueError, match="expected images with each label"):
        class_balance.positive_weights(np.zeros((3, 2), np.int32))


def test_what_counts_as_correct(batch):
    logits, targets, _, mask = batch
    right = (np.asarray(logits) > 0) == (np.asarray(targets) > 0.5)
    found = MULTI_LABEL.correct(logits, targets, mask.at[0].set(False))
    assert float(found) == pytest.approx(right.mean(axis=1)[1:].sum())
    top = np.asarray(logits).argmax(1) == np.asarray(targets).argmax(1)
    assert float(MULTI_CLASS.correct(logits, targets, mask)) == top.sum()


@pytest.mark.full
def test_labels_become_targets_and_are_mixed_by_shares_of_the_image():
    labels = jnp.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 0]], jnp.int32)
    images = jnp.zeros((4, 16, 16, 3), jnp.uint8)
    batch = Batch(images, labels, jnp.ones(4, bool))
    key = jax.random.key(0)
    plain = prepare_batch(parse("none"), key, batch, classes=3, objective=MULTI_LABEL)
    np.testing.assert_array_equal(plain.targets, labels.astype(jnp.float32))
    spec = parse("mixup(1.0)").mix
    keys = jax.random.split(key, 4)
    _, mixed = mix(spec, keys, images, plain.targets)
    own = (mixed - plain.targets[jnp.array([1, 0, 3, 2])]) / jnp.where(
        plain.targets == plain.targets[jnp.array([1, 0, 3, 2])],
        jnp.nan,
        plain.targets - plain.targets[jnp.array([1, 0, 3, 2])],
    )
    # One share for all labels of an image; a label that both images have, or lack, stays.
    assert np.nanmax(np.nanmax(own, axis=1) - np.nanmin(own, axis=1)) < 1e-5
    np.testing.assert_allclose(mixed[2:, 1], 1.0, atol=1e-6)
    np.testing.assert_allclose(mixed[:2, 1], 0.0, atol=1e-6)


def test_batches_hold_several_labels_on_the_device_and_streamed():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 2, (6, 5)).astype(np.int32)
    order = jnp.array([5, 3, 1, 0, 2, 4], jnp.int32)
    data = jax.tree.map(jnp.asarray, DeviceDataset.of(images, labels))
    one = gather(data, order, jnp.int32(2), 3)
    np.testing.assert_array_equal(one.label, labels[[1, 0, 2]])
    both = nth(StackedBatches(jnp.asarray(images[None]), jnp.asarray(labels[None])), 0)
    np.testing.assert_array_equal(both.label, labels)
    assert one.mask.shape == (3,)
    assert both.mask.shape == (6,)


@pytest.mark.full
def test_a_step_learns_each_label_by_itself():
    model = Network(SimpleCNN(depths=(1,), widths=(8,)), Head(3))
    config = StepConfig(model, (0.5,) * 3, (0.2,) * 3, batch_size=4, objective=MULTI_LABEL)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    labels = jnp.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 0]], jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    phase = Phase("batchnorm", optax.sgd(0.1))

    @jax.jit
    def sums(labels, weights):
        batch = Batch(jnp.asarray(images), labels, jnp.ones(4, bool))
        return gradients.batch_sums(config, phase, variables, jnp.int32(0), batch, weights)

    def kernel(found):
        leaves = jax.tree_util.tree_leaves_with_path(found.grads["head"])
        return next(leaf for path, leaf in leaves if leaf.ndim == 2 and leaf.shape[1] == 3)

    first = sums(labels, jnp.ones(3))
    other = sums(labels.at[:, 2].set(1 - labels[:, 2]), jnp.ones(3))
    # The gradient of a label's logit does not depend on the other labels.
    np.testing.assert_array_equal(kernel(first)[:, :2], kernel(other)[:, :2])
    assert np.abs(kernel(first)[:, 2] - kernel(other)[:, 2]).max() > 0
    assert float(first.count) == 4
    assert 0 <= float(first.correct) <= 4


def test_views_of_labels_are_averaged_as_probabilities_or_log_odds():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32))
    p = jax.nn.sigmoid(logits)
    mean = tta.average(logits, tta.TTAConfig("flip"), tta.SIGMOID)
    np.testing.assert_allclose(mean, p.mean(axis=0), rtol=1e-6)
    mean = tta.average(logits, tta.TTAConfig("flip", "logits"), tta.SIGMOID)
    np.testing.assert_allclose(mean, jax.nn.sigmoid(logits.mean(axis=0)), rtol=1e-6)
    weights = (("image", 0.7), ("a", 0.2), ("b", 0.1))
    mean = tta.average(logits, tta.TTAConfig("flip", weights=weights), tta.SIGMOID)
    np.testing.assert_allclose(mean, jnp.tensordot(jnp.array([0.7, 0.2, 0.1]), p, 1), rtol=1e-5)


def test_the_config_says_which_objective_a_run_has(make_config):
    assert factory.step_config(make_config(), 3).objective is MULTI_CLASS
    config = make_config(**{"data.task": "multi-label"})
    assert factory.step_config(config, 3).objective is MULTI_LABEL
