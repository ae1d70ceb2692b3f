import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.convnext import NETWORKS, SIZES, ConvNeXt

# Millions of parameters with a classifier of 1000 classes, as timm publishes them.
MILLIONS = {
    "atto": 3.70,
    "femto": 5.22,
    "pico": 9.05,
    "nano": 15.59,
    "tiny": 28.59,
    "small": 50.22,
    "base": 88.59,
    "large": 197.77,
    "xlarge": 350.20,
}
V2_MILLIONS = {
    "atto": 3.71,
    "femto": 5.23,
    "pico": 9.07,
    "nano": 15.62,
    "tiny": 28.64,
    "small": 50.33,
    "base": 88.72,
    "large": 197.96,
    "huge": 660.29,
}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 101, 101, 3)), jnp.float32)


@pytest.fixture(scope="module")
def small():
    """A network with random weights, whose residual branches have layer scale 1."""
    model = ConvNeXt(depths=(1, 2), widths=(8, 16), drop_path=0.5, layer_scale=1.0)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def torch_logits(params, x, depths):
    """The published network in PyTorch, on the same parameters."""
    import torch
    from torch.nn import functional as F

    def tensor(array):
        return torch.tensor(np.asarray(array))

    def norm(x, p):
        return F.layer_norm(x, x.shape[-1:], tensor(p["scale"]), tensor(p["bias"]), eps=1e-6)

    def linear(x, p):
        return x @ tensor(p["kernel"]) + tensor(p["bias"])

    def conv(x, p, **options):
        # HWIO to OIHW; a depthwise kernel has no input axis.
        kernel = tensor(p["kernel"])
        kernel = kernel[:, :, None] if kernel.ndim == 3 else kernel
        out = F.conv2d(
            x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), tensor(p["bias"]), **options
        )
        return out.permute(0, 2, 3, 1)

    backbone = params["backbone"]
    x = norm(conv(tensor(x), backbone["stem"], stride=4), backbone["stem_norm"])
    for stage, depth in enumerate(depths):
        if stage:
            x = norm(x, backbone[f"downsample_{stage}_norm"])
            x = conv(x, backbone[f"downsample_{stage}"], stride=2)
        for block in range(depth):
            p = backbone[f"stage_{stage}_block_{block}"]
            y = norm(conv(x, p["depthwise"], padding=3, groups=x.shape[-1]), p["norm"])
            y = linear(F.gelu(linear(y, p["expand"])), p["project"])
            x = x + y * tensor(p["scale"])
    return linear(norm(x.mean((1, 2)), backbone["norm"]), params["head"]["logits"]).numpy()


@pytest.mark.full
@pytest.mark.parametrize("name", list(NETWORKS))
def test_parameter_counts(name):
    variables = jax.eval_shape(lambda: models.random_model(name)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    version, _, size = name.partition("_")
    millions = V2_MILLIONS if version == "convnextv2" else MILLIONS
    assert count / 1e6 == pytest.approx(millions[size], rel=0.0015)
    assert not variables["batch_stats"]


def test_equals_the_same_network_in_torch(images):
    pytest.importorskip("torch")
    model = models.build("convnext_atto", 7, hidden=(), batch_norm=False, dropout=(0.0, 0.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        # Scales near 1, so that no branch vanishes, and kernels that preserve the variance.
        if path[-1].key == "scale":
            return rng.normal(1.0, 0.2, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[: 2 if len(leaf.shape) == 3 else -1]) or 1
        return rng.normal(0.0, fan_in**-0.5, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    found = jax.jit(model.apply)({"params": params}, images)
    expected = torch_logits(params, images, SIZES["atto"][0])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.full
def test_each_stage_shows_its_features(small, images):
    model, variables = small
    _, seen = jax.eval_shape(
        functools.partial(model.apply, mutable=["intermediates"]), variables, images
    )
    shapes = {name: value[0].shape for name, value in seen["intermediates"].items()}
    assert shapes == {"stage_0": (2, 25, 25, 8), "stage_1": (2, 12, 12, 16)}


@pytest.mark.full
def test_stochastic_depth_only_while_training(small, images):
    model, variables = small
    images = jnp.tile(images[:1], (64, 1, 1, 1))[:, :32, :32]
    calm = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(calm, jnp.broadcast_to(calm[:1], calm.shape), atol=1e-5)
    train = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    wild = jax.jit(train)(variables, images)
    # The last block is left out half the time, the one before a quarter: four outcomes.
    outcomes = np.unique(np.round(wild, 3), axis=0)
    assert len(outcomes) == 4


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(small, images):
    model, variables = small
    images = images[:, :32, :32]
    half = model.clone(dtype=jnp.bfloat16)
    # Flax's norms mix the two types.
    with jax.numpy_dtype_promotion("standard"):
        drawn = jax.eval_shape(half.init, jax.random.key(0), images)
        found = jax.jit(half.apply)(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    assert found.dtype == jnp.bfloat16
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.15)
