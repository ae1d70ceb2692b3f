"""Steps that say which device computes what give the numbers of a single device."""

import functools

import jax
import numpy as np
import optax
import pytest

from bloodjax import models
from bloodjax.augment.policy import parse
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, StackedBatches, epoch_order
from bloodjax.distributed import sharding
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase, StepConfig

from ..trees import assert_trees_close

CLASSES, BATCH = 3, 16
NETWORK = Network(
    SimpleCNN(depths=(1, 1), widths=(32, 128), drop_path=0.2), Head(CLASSES, hidden=(64,))
)
PHASE = Phase("none", optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9)))
CHANGES = {
    "plain": {},
    "micro": {"accumulate_steps": 2, "augment": parse("d4|mixup(0.4, p=0.5)|cutmix(1.0, p=0.5)")},
    "randaugment": {"augment": parse("d4|randaugment(2, 0.4)|cutmix(1.0, p=0.5)")},
}


def make(layout, devices=None, **changes):
    options = {"augment": parse("d4"), "ema": 0.9, **changes}
    step_config = StepConfig(NETWORK, (0.5,) * 3, (0.25,) * 3, BATCH, **options)
    return JitExecutor(step_config, devices, layout)


def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, 40).astype(np.int32)


@functools.cache
def variables():
    return jax.device_get(models.init_variables(NETWORK, 16))


def two_steps(executor, phase=PHASE):
    state = executor.shard_state(TrainState.create(variables(), phase.tx, ema=True))
    data = executor.replicate(DeviceDataset.of(*images_and_labels()))
    weights = executor.replicate(np.array([0.5, 1.0, 2.0], np.float32))
    order = executor.replicate(epoch_order(7, 0, 40))
    for _ in range(2):
        state, _ = executor.train(phase, 1, state, data, order, weights)
    return state


@functools.cache
def on_one(case):
    executor = make("data", devices=jax.devices()[:1], **CHANGES[case])
    return jax.device_get(two_steps(executor))


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
@pytest.mark.parametrize(
    "case", ["plain", "micro", pytest.param("randaugment", marks=pytest.mark.slow)]
)
def test_training_gives_the_numbers_of_one_device(layout, case):
    executor = make(layout, **CHANGES[case])
    state = two_steps(executor)
    assert jax.tree.map(lambda x: x.sharding, state) == executor.layout.of(state)
    assert_trees_close(jax.device_get(state), on_one(case))


@pytest.mark.full
def test_streamed_batches_give_the_same_as_a_dataset_on_the_devices():
    executor = make("fsdp")
    images, labels = images_and_labels()
    order = np.asarray(epoch_order(7, 0, 40))
    rows = order[: 2 * BATCH].reshape(2, BATCH)
    batches = executor.shard_batches(StackedBatches(images[rows], labels[rows]))
    state = executor.shard_state(TrainState.create(variables(), PHASE.tx, ema=True))
    weights = executor.replicate(np.array([0.5, 1.0, 2.0], np.float32))
    state, _ = executor.train(PHASE, 2, state, batches, None, weights)
    assert_trees_close(jax.device_get(state), on_one("plain"))


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
def test_predictions_and_features_are_those_of_one_device(layout):
    split, whole = make(layout), make("data", devices=jax.devices()[:1])
    images = images_and_labels()[0][:21]
    for name, views in (("predict", ("d4",)), ("each_view", ("d4",)), ("features", ())):
        found, expected = (
            getattr(executor, name)(executor.shard_state(variables()), images, *views)
            for executor in (split, whole)
        )
        assert found.shape == expected.shape
        assert_trees_close(found, expected)
