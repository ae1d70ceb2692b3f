"""Every family with `remat`: the same variables and gradients, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.densenet import DenseNet
from bloodjax.models.efficientnet import EfficientNet, Stage
from bloodjax.models.inception import InceptionV3
from bloodjax.models.mobilenet import MobileNet
from bloodjax.models.resnet import ResNet
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.models.vgg import VGG

# Small forms that still have several blocks whose maps are large beside their weights.
BACKBONES = {
    "convnext": functools.partial(ConvNeXt, (3,), (8,), drop_path=0.5, layer_scale=1.0),
    "densenet": functools.partial(DenseNet, (4,), 4, drop_path=0.5),
    "efficientnet": functools.partial(EfficientNet, (Stage(3, 8, 4),), 8, 16, drop_path=0.5),
    "mobilenet": functools.partial(MobileNet, depths=(3,), widths=(8,)),
    "resnet": functools.partial(ResNet, (3,), False, (8,), drop_path=0.5),
    "simple_cnn": functools.partial(SimpleCNN, (3, 3), (8, 8), drop_path=0.5),
    "vgg": functools.partial(VGG, (3, 3), True, (8, 8)),
    "inception": InceptionV3,
}
HEAVY = ("inception",)


def compiled(backbone, variables, x):
    def loss(params, x):
        features, stats = backbone.apply(
            variables | {"params": params},
            x,
            train=True,
            update_stats=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return jnp.sum(jnp.square(features)), stats

    gradient = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(gradient).lower(variables["params"], x).compile()


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in BACKBONES]
)
def test_remat_changes_memory_alone(name):
    size = 75 if name in HEAVY else 32
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, size, size, 3)), jnp.float32)
    plain, remat = BACKBONES[name](), BACKBONES[name](remat=True)
    keys = {"params": jax.random.key(0)}
    variables = jax.jit(plain.init)(keys, x)
    shapes = jax.eval_shape(remat.init, keys, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    runs = [compiled(backbone, variables, x) for backbone in (plain, remat)]
    expected, found = (jax.device_get(run(variables["params"], x)) for run in runs)
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    difference = norm(jax.tree.map(np.subtract, found[1], expected[1]))
    assert difference < 1e-6 * norm(expected[1])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
        found[0][1],
        expected[0][1],
    )
    before, after = (run.memory_analysis().temp_size_in_bytes for run in runs)
    assert after < before
