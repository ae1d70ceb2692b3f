"""Every family with `remat`: the same variables and gradients, and less kept for the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.models import inception
from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.densenet import DenseNet
from bloodjax.models.efficientnet import EfficientNet, Stage
from bloodjax.models.mobilenet import MobileNet
from bloodjax.models.resnet import ResNet
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.models.vgg import VGG

# Small forms that still have several blocks.
BACKBONES = {
    "convnext": functools.partial(ConvNeXt, (2,), (8,), drop_path=0.5, layer_scale=1.0),
    "densenet": functools.partial(DenseNet, (2,), 4, drop_path=0.5),
    "efficientnet": functools.partial(EfficientNet, (Stage(2, 8, 4),), 8, 16, drop_path=0.5),
    "mobilenet": functools.partial(MobileNet, depths=(2,), widths=(8,)),
    "resnet": functools.partial(ResNet, (2,), False, (8,), drop_path=0.5),
    "simple_cnn": functools.partial(SimpleCNN, (2, 2), (8, 8), drop_path=0.5),
    "vgg": functools.partial(VGG, (2, 2), True, (8, 8)),
    "inception": inception.InceptionV3,
}


def loss(backbone, batch_stats, x, params):
    features, stats = backbone.apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train=True,
        update_stats=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(1)},
    )
    return jnp.sum(jnp.square(features)), stats


def kept(function, params):
    """Bytes that the forward pass keeps for the backward pass."""
    pullback = jax.eval_shape(lambda params: jax.vjp(function, params, has_aux=True)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree)))


LONG = ("convnext", "densenet", "inception", "mobilenet", "resnet", "vgg")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=getattr(pytest.mark, "slow" if name in LONG else "full"))
        for name in BACKBONES
    ],
)
def test_remat_changes_nothing_but_what_is_kept(name, monkeypatch):
    # Inception's first block and its last, which gives the features.
    blocks = {block: inception.BLOCKS[block] for block in ("mixed_5b", "mixed_7c")}
    monkeypatch.setattr(inception, "BLOCKS", blocks)
    size = 75 if name == "inception" else 32
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, size, size, 3)), jnp.float32)
    plain, remat = BACKBONES[name](), BACKBONES[name](remat=True)
    keys = {"params": jax.random.key(0)}
    variables = jax.jit(plain.init)(keys, x)
    shapes = jax.eval_shape(remat.init, keys, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    params, stats = variables["params"], variables.get("batch_stats", {})
    functions = [functools.partial(loss, backbone, stats, x) for backbone in (plain, remat)]
    expected, found = (
        jax.device_get(jax.jit(jax.value_and_grad(function, has_aux=True))(params))
        for function in functions
    )
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    difference = norm(jax.tree.map(np.subtract, found[1], expected[1]))
    assert difference < 1e-6 * norm(expected[1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, found[0][1], expected[0][1])
    before, after = (kept(function, params) for function in functions)
    assert after < 0.8 * before, (before, after)
