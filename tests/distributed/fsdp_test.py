"""A training state split over the devices: the same numbers, and a fraction of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax import models, run
from bloodjax.augment.policy import parse
from bloodjax.checkpoints.manager import Checkpoints, RunProgress
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.evaluation import classifier
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase, StepConfig

from .. import compilations
from ..trees import assert_trees_close, assert_trees_equal

CLASSES, BATCH = 3, 16
NETWORK = Network(SimpleCNN(depths=(1, 1), widths=(32, 128)), Head(CLASSES, hidden=(64,)))
# Momentum for the moments; Adam would blow up the rounding of gradients that are 0.
PHASE = Phase("none", optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9)))


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(models.init_variables(NETWORK, 16))


def make(layout, **changes):
    step_config = StepConfig(
        NETWORK, (0.5,) * 3, (0.25,) * 3, BATCH, augment=parse("d4"), ema=0.9, **changes
    )
    return JitExecutor(step_config, layout=layout)


def two_steps(steps, variables):
    """The state after two epochs of two steps, and before."""
    rng = np.random.default_rng(0)
    part = DeviceDataset.of(
        rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8),
        rng.integers(0, CLASSES, 40).astype(np.int32),
    )
    first = steps.shard_state(TrainState.create(variables, PHASE.tx, ema=True))
    places = jax.tree.map(lambda x: x.sharding, first)
    state, part = first, steps.replicate(part)
    weights = steps.replicate(np.ones(CLASSES, np.float32))
    with compilations.counted() as compiled:
        for epoch in range(2):
            order = steps.replicate(epoch_order(7, epoch, 40))
            for _ in range(2):
                state, _ = steps.train(PHASE, 1, state, part, order, weights)
    assert compiled.count == 1
    return state, places


def bytes_of(state, *, each):
    leaves = jax.tree.leaves(state)
    return sum((x.addressable_shards[0].data if each else x).nbytes for x in leaves)


@pytest.fixture(scope="module")
def ran(variables):
    """By layout: the steps, and what `two_steps` returned."""
    return {
        name: ((steps := make(name)), *two_steps(steps, variables)) for name in sharding.LAYOUTS
    }


@pytest.mark.full
def test_a_split_state_trains_to_the_same_numbers(ran):
    found, expected = (jax.device_get(ran[name][1]) for name in ("fsdp", "data"))
    assert found.step == 4
    assert_trees_close(found, expected)


def test_a_device_holds_an_eighth_of_the_state_before_and_after(ran):
    _, state, places = ran["fsdp"]
    whole = bytes_of(state, each=False)
    # Parameters, moments and the average; what is too small to be split is left over.
    small = sum(x.nbytes for x in jax.tree.leaves(state) if x.size < 1024)
    assert small < 0.06 * whole
    assert bytes_of(state, each=True) <= (whole - small) / 8 + small
    assert jax.tree.map(lambda x: x.sharding, state) == places
    _, state, _ = ran["data"]
    assert bytes_of(state, each=True) == bytes_of(state, each=False)


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_either_layout_restores_what_the_other_saved(ran, variables, tmp_path, layout):
    _, state, _ = ran[{"data": "fsdp", "fsdp": "data"}[layout]]
    reader, _, _ = ran[layout]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, RunProgress(("a", "b", "c")))
        like = jax.eval_shape(lambda: TrainState.create(variables, PHASE.tx, ema=True))
        found = checkpoints.restore(4, like, reader.layout)
    assert jax.tree.map(lambda x: x.sharding, found) == reader.layout.of(like)
    assert_trees_equal(jax.device_get(found), jax.device_get(state))


@pytest.mark.slow
def test_a_whole_run_with_a_split_state(trained, make_config, tmp_path):
    config = make_config(sharding="fsdp")
    results = run.train(config, tmp_path)
    again, expected = classifier.load(tmp_path), classifier.load(trained)
    images = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(again.predict(images), expected.predict(images), atol=1e-4)
    assert results["test"]["n"] == 24


def test_the_largest_dimension_that_fits_is_split():
    layout = sharding.Layout(sharding.mesh(), "fsdp")
    like = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in {
            "last": (3, 3, 16, 64),
            "third": (3, 3, 64, 30),
            "odd": (33, 99),
            "small": (64, 8),
            "scalar": (),
        }.items()
    }
    specs = {name: tuple(place.spec) for name, place in layout.of(like).items()}
    assert specs == {
        "last": (None, None, None, "data"),
        "third": (None, None, "data"),
        "odd": (),
        "small": (),
        "scalar": (),
    }
    whole = sharding.Layout(sharding.mesh())
    assert {place.spec for place in whole.of(like).values()} == {jax.sharding.PartitionSpec()}


def test_pmap_cannot_split_a_state(make_config):
    message = "config.sharding is 'fsdp', expected data with config.parallel pmap"
    with pytest.raises(UserError, match=message):
        make_config(sharding="fsdp", parallel="pmap")
