"""A folded network computes what the network computes."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bloodjax import models
from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.densenet import DenseNet
from bloodjax.models.efficientnet import EfficientNet, Stage
from bloodjax.models.folding import fold
from bloodjax.models.head import Head, Network
from bloodjax.models.mobilenet import MobileNet
from bloodjax.models.resnet import ResNet
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.models.vgg import VGG

from ..trees import assert_trees_close, assert_trees_equal

SIZE, KEY, FULL = 32, jax.random.key(0), pytest.mark.full


def tiny(family, **fields):
    return functools.partial(family, **fields)


STAGES = (Stage(1, 8, 1), Stage(2, 16, 6, 5, 2), Stage(1, 24, 4, 3, 2, fused=True))
LITE = {"stages": STAGES, "stem": 8, "features": 32, "activation": "relu6", "squeeze": False}
RESNET = {"depths": (1, 1), "bottleneck": True, "widths": (8, 16)}
# Of each family a small network, and how many of its norms do not follow a convolution.
BACKBONES = {
    "efficientnet_lite": (tiny(EfficientNet, **LITE), 0),
    "efficientnet": (tiny(EfficientNet, stages=STAGES, stem=8, features=32), 0),
    "resnet_keras": (tiny(ResNet, **RESNET, stride_first=True, use_bias=True), 0),
    "resnet": (tiny(ResNet, **RESNET), 0),
    "mobilenet": (tiny(MobileNet, multiplier=0.25, depths=(1, 1), widths=(64, 128)), 0),
    "densenet": (tiny(DenseNet, depths=(2, 2), growth=8), 6),
    "vgg_bn": (tiny(VGG, depths=(1, 1), norm=True, widths=(8, 16)), 0),
    "simple_cnn": (tiny(SimpleCNN, depths=(1, 1), widths=(8, 16)), 0),
}


def network(name, dtype=jnp.float32):
    backbone, _ = BACKBONES[name]
    return Network(backbone(dtype=dtype), Head(3, hidden=(8,), dtype=dtype))


def variables_of(model):
    """Random variables, none of which is 0 or 1."""
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, SIZE, SIZE, 3)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_a_folded_network_computes_the_same():
    _check("simple_cnn")


@FULL
@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"simple_cnn"}))
def test_other_folded_networks_compute_the_same(name):
    _check(name)


def _check(name):
    model = network(name)
    variables = variables_of(model)
    before = jax.tree.map(np.copy, variables)
    folded = fold(model, variables, SIZE)
    assert_trees_equal(variables, before)
    assert "batch_stats" not in folded
    left = [path for path in flatten_dict(folded) if _is_factor(path)]
    in_head = 1
    assert len(left) == BACKBONES[name][1] + in_head
    x = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    apply = jax.jit(model.apply)
    assert_trees_close(apply(folded, x), apply(variables, x))


def _is_factor(path):
    return path[-1] == "factor"


@FULL
def test_every_norm_of_inception_follows_a_convolution():
    model = models.build("inception_v3", 3, hidden=(), batch_norm=False)
    image = jnp.zeros((1, 75, 75, 3))
    shapes = jax.eval_shape(model.init, KEY, image)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    assert not any(map(_is_factor, flatten_dict(fold(model, ones, 75))))


@FULL
def test_a_network_in_bfloat16_folds_as_in_float32():
    wide, narrow = network("efficientnet"), network("efficientnet", jnp.bfloat16)
    variables = variables_of(wide)
    assert_trees_equal(fold(narrow, variables, SIZE), fold(wide, variables, SIZE))
    x = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    found = jax.jit(narrow.apply)(fold(narrow, variables, SIZE), x)
    assert_trees_close(found, jax.jit(narrow.apply)(variables, x), 0.02)


def test_a_network_without_batch_norm_stays_as_it_is():
    model = Network(ConvNeXt(depths=(1,), widths=(8,)), Head(3, hidden=(), batch_norm=False))
    variables = {"params": {"backbone": {}}}
    assert fold(model, variables, SIZE) is variables


def test_folded_variables_are_not_trained_and_statistics_are_not_optional():
    model = network("simple_cnn")
    variables = variables_of(model)
    x, folded = jnp.zeros((2, SIZE, SIZE, 3)), fold(model, variables, SIZE)
    with pytest.raises(flax.errors.FlaxError):
        model.apply({"params": variables["params"]}, x)
    with pytest.raises(ValueError, match="folded"):
        model.apply(folded, x, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
