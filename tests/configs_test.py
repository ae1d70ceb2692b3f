"""Every recipe loads, builds and takes a training step on a shrunken input."""

import functools

import jax
import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax.checkpoints.state import TrainState
from bloodjax.config import recipes
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.models import layer_depth
from bloodjax.pretrained import load
from bloodjax.pretrained.pretrained_cfg import DEFAULTS
from bloodjax.training import class_balance, factory, optim
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase

NAMES = recipes.names()
SIZES = {"inception_v3": 75}
# From random weights.
RANDOM = ("quickstart", "cells_cpu", "recipes/medmnist")
# Eight copies of these do not fit.
LARGE = ("convnext_base", "convnext_large")
# The same code as another's step, which compiles for half a minute too.
LONG = (
    *("convnext_base", "convnext_large", "efficientnet_b0", "efficientnet_lite0"),
    *("inception_v3", "resnet50", "vgg16"),
    *("recipes/clean", "recipes/convnext_gpu", "recipes/convnext_large_gpu", "recipes/fast"),
    *("recipes/medmnist", "recipes/rare", "recipes/travel"),
)


def _filled(rng, path, x):
    """A variable of usual size; what draws a deep network's takes longer to compile than to run."""
    if len(x.shape) > 1:
        fan_in = np.prod(x.shape[:-1])
        return rng.normal(0, fan_in**-0.5, x.shape).astype(x.dtype)
    return np.full(x.shape, path[-1].key in ("scale", "var"), x.dtype)


def _step(config, freeze):
    rng = np.random.default_rng(0)
    size = config.data.image_size
    images = rng.integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    labels = np.arange(16, dtype=np.int32) % 8
    # Two images a device: MixUp needs pairs.
    devices = jax.devices()[: 1 if config.model.name in LARGE else 4]
    steps = JitExecutor(factory.step_config(config, 8), devices)
    variables = jax.tree_util.tree_map_with_path(
        functools.partial(_filled, rng), factory.shapes(config, 8)
    )
    tx = optim.optimizer(config.phases.finetune, 2, variables["params"], variables["batch_stats"])
    state = steps.replicate(TrainState.create(variables, tx))
    data = steps.replicate(DeviceDataset.of(images, labels))
    order = steps.replicate(epoch_order(0, 0, 16))
    weights = steps.replicate(class_balance.balanced_class_weights(labels, 8))
    state, sums = steps.train(Phase(freeze, tx), 1, state, data, order, weights)
    return jax.device_get(steps.unreplicate(state)), jax.device_get(sums)


def _load(name, *overrides):
    size = f"data.image_size={SIZES.get(name, 32)}"
    return config_lib.load(name, ["data.train=synthetic", size, "batch_size=8", *overrides])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=getattr(pytest.mark, "slow" if name in LONG else "full"))
        for name in NAMES
    ],
)
def test_takes_a_step(name):
    # A recipe is for any network, and quick to compile with the smallest.
    other = (
        ("model.name=simple_cnn", "model.weights=", "model.variant=")
        if name.startswith("recipes/")
        else ()
    )
    config = _load(name, *other)
    state, sums = _step(config, config.phases.finetune.freeze)
    assert int(state.step) == 1
    assert np.isfinite(sums.loss)
    assert int(sums.bad_step) == -1


@pytest.mark.parametrize("name", ["convnext_gpu", "convnext_large_gpu"])
def test_the_stem_of_a_gpu_recipe_learns_at_an_eighteenth_of_the_head_s_rate(name):
    config = _load(name)
    params = factory.shapes(config, 8)["params"]
    depths = jax.tree.leaves(layer_depth.depths(params))
    rate = config.phases.finetune.layer_decay ** (max(depths) - min(depths))
    assert rate == pytest.approx(1 / 18, rel=0.03)
    robust = config_lib.load("robust", ["data.train=synthetic"])
    assert config.augment == robust.augment
    assert (config.ema, config.evaluation.tta) == (robust.ema, robust.evaluation.tta)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in RANDOM])
def test_starts_from_imagenet(name):
    config = _load(name)
    assert config.model.weights == load.DEFAULT
    assert DEFAULTS[config.model.name].location.startswith(("hf:", "package:"))


@pytest.mark.parametrize("name", RANDOM)
def test_asks_for_random_weights(name):
    assert not _load(name).model.weights
