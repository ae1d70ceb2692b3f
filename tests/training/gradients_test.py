import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.augment.policy import parse
from bloodjax.data.batches import Batch
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import gradients
from bloodjax.training.step_config import Phase, StepConfig

from ..trees import assert_trees_close, assert_trees_equal

N, CLASSES = 4, 3


@pytest.mark.full
def test_the_weight_of_an_image_scales_its_loss_and_gradient():
    # Without normalisation over the batch, the loss is a sum over the images.
    model = Network(SimpleCNN(depths=(1,), widths=(8,)), Head(CLASSES))
    config = StepConfig(model, (0.5,) * 3, (0.2,) * 3, batch_size=N, seed=0, augment=parse("none"))
    phase = Phase("batchnorm", optax.sgd(0.1))
    images = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(N, dtype=np.int32) % CLASSES
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(N, bool))

    @jax.jit
    def sums(batch):
        weights = jnp.ones(CLASSES)
        return gradients.batch_sums(config, phase, variables, jnp.int32(0), batch, weights)

    plain = sums(batch)
    ones = sums(batch.replace(weight=jnp.ones(N)))
    assert_trees_equal(plain, ones)
    parts = [sums(batch.replace(weight=jnp.eye(N)[i])) for i in range(N)]
    weights = np.array([0.0, 1.0, 2.0, 0.5], np.float32)
    found = sums(batch.replace(weight=jnp.asarray(weights)))
    expected = jax.tree.map(
        lambda *each: sum(w * x for w, x in zip(weights, each, strict=True)),
        *[(part.loss, part.grads) for part in parts],
    )
    assert_trees_close((found.loss, found.grads), expected, 1e-5)
    assert (found.count, found.correct) == (plain.count, plain.correct), "they count as before"
