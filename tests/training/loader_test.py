"""Training is bit-identical whether the images are streamed or stay on the device."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.augment.policy import parse
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import epoch_order
from bloodjax.data.dataset import Dataset
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import loader, optim
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.step_config import Phase, StepConfig

from .. import compilations
from ..trees import assert_trees_equal

# No power of two, so that dividing by it is not exact; 7 steps in an epoch.
BATCH, IMAGES, PER_EPOCH = 24, 175, 7


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 16, 16, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, IMAGES).astype(np.int32)
    blank = ("",) * IMAGES
    return Dataset(images, labels, tuple(map(str, range(IMAGES))), tuple("abc"), blank, blank)


@functools.cache
def executor_of(parallel):
    """Compiled steps of a tiny network, with what is random in a step, for all tests."""
    axis_name = sharding.AXIS if parallel == "pmap" else None
    backbone = SimpleCNN(depths=(1, 1), widths=(8, 16), drop_path=0.2, axis_name=axis_name)
    model = Network(backbone, Head(3, hidden=(16,), axis_name=axis_name))
    thirds = (0.3, 0.3, 0.3)
    step_config = StepConfig(
        model, thirds, thirds, BATCH, seed=1, augment=parse("d4"), axis_name=axis_name
    )
    return JitExecutor(step_config) if axis_name is None else PmapExecutor(step_config)


@functools.cache
def start():
    """The phase, and variables on the host."""
    model = executor_of("jit").step_config.model
    variables = jax.device_get(models.init_variables(model, 16))
    options = config_lib.defaults().phases.finetune
    tx = optim.optimizer(options, PER_EPOCH, variables["params"], variables["batch_stats"])
    return Phase("none", tx), variables


def loader_of(make_config, on_device, parallel, at_once, **changes):
    values = {"batch_size": BATCH, "steps_per_call": at_once, "data.on_device": on_device}
    config = make_config(**values, **changes)
    source = loader.TrainLoader(config, executor_of(parallel), dataset())
    assert source.steps_per_epoch == PER_EPOCH
    assert source.on_device == (on_device == "always")
    return source


@pytest.mark.parametrize("on_device", ["always", "never"])
def test_features_are_computed_once_and_left_when_pictures_are_asked_for(make_config, on_device):
    source = loader_of(make_config, on_device, "jit", 3)
    variables = source.executor.replicate(start()[1])
    assert list(source.cache_features(variables)) == [*range(BATCH, IMAGES, BATCH), IMAGES]
    assert list(source.cache_features(variables)) == []
    (steps, data, order), *_ = source.epoch(0, cached=True)
    assert steps == 3
    expected = source.executor.features(variables, dataset().images)
    found = data.take(jnp.arange(IMAGES))
    assert found.shape == (IMAGES, 8, 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(np.sort(order), np.arange(IMAGES))
    with contextlib.closing(source.epoch(1, 0)) as inputs:
        data = next(inputs)[1]
    image_shape = data.shape if on_device == "always" else data.images.shape[2:]
    assert image_shape == (16, 16, 3)
    assert next(iter(source.cache_features(variables))) == BATCH


def train(make_config, on_device, parallel, at_once, **changes):
    """The state on the host after two epochs, and what was compiled after each."""
    source = loader_of(make_config, on_device, parallel, at_once, **changes)
    phase, variables = start()
    state = source.executor.replicate(TrainState.create(variables, phase.tx))
    weights = source.executor.replicate(np.array([0.5, 1.0, 2.0], np.float32))
    compiled = []
    with compilations.counted() as found:
        for epoch in range(2):
            with contextlib.closing(source.epoch(epoch, 0)) as inputs:
                for steps, *data in inputs:
                    state, _ = source.executor.train(phase, steps, state, *data, weights)
            compiled.append(found.count)
    return jax.device_get(source.executor.unreplicate(state)), compiled


@pytest.mark.full
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_streaming_trains_bit_for_bit_as_the_device_s_own_pictures_do(
    make_config, parallel, at_once
):
    # Calls of three steps leave one for the epoch's last call.
    expected, _ = train(make_config, "always", parallel, at_once)
    found, (first, second) = train(make_config, "never", parallel, at_once)
    assert found.step == 2 * PER_EPOCH
    assert_trees_equal(found, expected)
    assert first == second  # an epoch compiles nothing that the first one did not


@pytest.mark.full
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("sampling", ["sqrt", "balanced"])
def test_sampling_streams_the_pictures_that_the_device_would_take(make_config, parallel, sampling):
    changes = {"data.sampling": sampling}
    expected, _ = train(make_config, "always", parallel, 3, **changes)
    found, _ = train(make_config, "never", parallel, 3, **changes)
    assert found.step == 2 * PER_EPOCH
    assert_trees_equal(found, expected)
    plain, _ = train(make_config, "always", parallel, 3)
    kernels = [s.params["head"]["logits"]["kernel"] for s in (expected, plain)]
    assert not np.array_equal(*kernels)


def test_oversampling_shows_each_class_equally_often(make_config):
    source = loader_of(make_config, "never", "jit", 3, **{"data.sampling": "balanced"})
    with contextlib.closing(source.epoch(0, 0)) as inputs:
        labels = np.concatenate([np.ravel(data.labels) for _, data, _ in inputs])
    assert np.bincount(labels).tolist() == [PER_EPOCH * BATCH // 3] * 3
    assert len(set(np.bincount(dataset().labels))) > 1


def test_sampling_by_an_exponent_shows_classes_by_it(make_config):
    size = PER_EPOCH * BATCH
    counts = np.bincount(dataset().labels)
    for text, q in (("sqrt", 0.5), ("0.25", 0.25)):
        source = loader_of(make_config, "never", "jit", 3, **{"data.sampling": text})
        with contextlib.closing(source.epoch(0, 0)) as inputs:
            labels = np.concatenate([np.ravel(data.labels) for _, data, _ in inputs])
        expected = size * counts**q / (counts**q).sum()
        assert np.abs(np.bincount(labels) - expected).max() < 1


def test_every_image_once_is_natural(make_config):
    found = [inputs_of(make_config, "always", 0, **{"data.sampling": s}) for s in ("natural", "1")]
    expected = epoch_order(make_config().seed, 1, IMAGES)
    for inputs in found:
        np.testing.assert_array_equal(inputs[0].order, expected)


def inputs_of(make_config, on_device, done, parallel="jit", **changes):
    source = loader_of(make_config, on_device, parallel, at_once=3, **changes)
    with contextlib.closing(source.epoch(1, done)) as inputs:
        return list(inputs)


@pytest.mark.parametrize(
    ("parallel", "sampling"), [("jit", "natural"), ("pmap", "natural"), ("jit", "sqrt")]
)
def test_an_epoch_goes_on_in_its_middle(make_config, parallel, sampling):
    changes = {"data.sampling": sampling}
    whole = inputs_of(make_config, "never", 0, parallel, **changes)
    rest = inputs_of(make_config, "never", 3, parallel, **changes)
    assert [steps for steps, *_ in whole] == [3, 3, 1]
    assert [steps for steps, *_ in rest] == [3, 1]
    for (_, data, order), (_, expected, _) in zip(rest, whole[1:], strict=True):
        assert order is None
        assert_trees_equal(data, expected)
    assert [steps for steps, *_ in inputs_of(make_config, "always", 5)] == [2]
    assert inputs_of(make_config, "never", PER_EPOCH) == []


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_batches_are_split_over_the_devices(make_config, parallel):
    _, data, _ = inputs_of(make_config, "never", 0, parallel)[0]
    shapes = {shard.data.shape for shard in data.images.addressable_shards}
    assert shapes == {(3, 3, 16, 16, 3) if parallel == "jit" else (1, 3, 3, 16, 16, 3)}
    assert len(data.images.sharding.device_set) == 8
    assert data.images.dtype == np.uint8


@pytest.mark.parametrize(
    ("on_device", "size", "stays"),
    [("auto", 25, True), ("auto", 26, False), ("always", 100, True), ("never", 1, False)],
)
def test_what_stays_on_the_device(on_device, size, stays):
    assert loader.stays_on_device(on_device, size, memory=100) == stays


def test_what_must_stay_and_cannot():
    message = "on_device is always, but .* take 101 bytes of each device's 100: expected auto or"
    with pytest.raises(UserError, match=message):
        loader.stays_on_device("always", 101, memory=100)


def test_the_memory_of_a_device(monkeypatch):
    assert 2**20 < loader.device_memory() < 2**50

    class Accelerator:
        def memory_stats(self):
            return {"bytes_limit": 80 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator()])
    assert loader.device_memory() == 80 * 2**30
