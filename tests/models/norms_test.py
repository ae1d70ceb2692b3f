"""Tests of bloodjax/models/norms.py, against Flax's BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bloodjax.models.layers import Conv, Dense, DepthwiseConv, PatchConv
from bloodjax.models.norms import BatchNorm, LayerNorm, conv_norm, norm_dense

from ..trees import assert_trees_equal


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(6).normal(2.0, 3.0, (16, 5, 3, 4)), jnp.float32)


def variables_of(layer, x):
    """Random variables, none of which is 0 or 1."""
    variables = layer.init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    drawn = [jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)


def results(layer, variables, x):
    """Output, updated statistics, and gradients of a loss that is not linear in the output."""

    def loss(params, x):
        out, updated = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(out)), (out, updated["batch_stats"])

    gradients, seen = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    return seen, gradients


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("use_scale", [True, False])
def test_equals_flaxs(x, update, use_scale):
    settings = {"epsilon": 1e-3, "use_scale": use_scale}
    theirs = nn.BatchNorm(use_running_average=not update, momentum=0.9, **settings)
    ours = BatchNorm(update, **settings)
    variables = variables_of(theirs, x)
    assert jax.tree.structure(variables_of(ours, x)) == jax.tree.structure(variables)
    found, expected = results(ours, variables, x), results(theirs, variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), found, expected)


def test_is_over_the_global_batch(x):
    layer = BatchNorm(True)
    variables = variables_of(layer, x)
    expected, updated = layer.apply(variables, x, mutable=["batch_stats"])

    def on_one_device(x):
        layer = BatchNorm(True, axis_name="data")
        out, updated = layer.apply(variables, x, mutable=["batch_stats"])
        return out, lax.pmean(updated["batch_stats"]["var"], "data")

    out, var = jax.pmap(on_one_device, axis_name="data")(x.reshape(8, 2, *x.shape[1:]))
    np.testing.assert_allclose(out.reshape(x.shape), expected, atol=1e-5)
    np.testing.assert_allclose(var[0], updated["batch_stats"]["var"], rtol=1e-5)


def test_initial_statistics_leave_images_unchanged(x):
    layer = BatchNorm(False)
    variables = layer.init(jax.random.key(0), x)
    out, updated = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(out, x, rtol=1e-4)  # mean 0 and variance 1 so far
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], jnp.zeros(4))
    # Initialisation does not update the statistics either.
    drawn = BatchNorm(True).init(jax.random.key(0), x)
    assert_trees_equal(drawn, variables)


def test_a_batch_in_bfloat16_has_float32_statistics(x):
    layer = BatchNorm(True, dtype=jnp.bfloat16)
    out, updated = layer.apply(
        layer.init(jax.random.key(0), x), x.astype(jnp.bfloat16), mutable=["batch_stats"]
    )
    assert out.dtype == jnp.bfloat16
    assert updated["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-2)


class ConvNorm(nn.Module):
    """A convolution with BatchNorm, by `conv_norm` or one after the other."""

    conv: nn.Module
    update: bool = False
    apart: bool = False

    @nn.compact
    def __call__(self, x):
        norm = BatchNorm(self.update, dtype=self.conv.dtype, name="norm")
        return norm(self.conv(x)) if self.apart else conv_norm(self.conv, norm, x)


CONVS = {
    "3x3": lambda dtype: Conv(6, 3, dtype=dtype, use_bias=True),
    "1x1": lambda dtype: Conv(6, 1, 2, dtype=dtype),
    "depthwise": lambda dtype: DepthwiseConv(3, dtype=dtype),
}


class NormDense(nn.Module):
    """LayerNorm and a layer with a scale, by `norm_dense` or one after the other."""

    dense: nn.Module
    apart: bool = False

    @nn.compact
    def __call__(self, x):
        norm = LayerNorm(dtype=self.dense.dtype, name="norm")
        x = x.astype(self.dense.dtype)
        y = self.dense(norm(x)) if self.apart else norm_dense(norm, self.dense, x)
        scale = self.param("scale", nn.initializers.ones, (y.shape[-1],))
        last = Dense(y.shape[-1], self.dense.dtype, name="last")
        if self.apart:
            return last(y) * scale.astype(y.dtype)[(None,) * (y.ndim - 1)]
        return last(y, scale=scale)


FOLDED = {
    **{
        name: lambda dtype, conv=conv, **apart: ConvNorm(conv(dtype), **apart)
        for name, conv in CONVS.items()
    },
    "dense": lambda dtype, **apart: NormDense(Dense(6, dtype), **apart),
    "patches": lambda dtype, **apart: NormDense(PatchConv(6, 2, dtype), **apart),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_norm_differs_by_rounding_only(x, name):
    exact, narrow = (FOLDED[name](dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = variables_of(exact, x)
    assert jax.tree.structure(variables_of(narrow, x)) == jax.tree.structure(variables)

    def of(module):
        def loss(variables):
            out = module.apply(variables, x).astype(jnp.float32)
            weights = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
            return jnp.sum(out * weights), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(variables)
        return {"out": out, **grads["params"]}

    apart, expected = (jax.jit(of, static_argnums=0)(m) for m in (narrow.clone(apart=True), exact))
    found = jax.jit(of, static_argnums=0)(narrow)

    def errors(tree):
        return jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), tree, expected)

    for error, other in zip(*(jax.tree.leaves(errors(t)) for t in (found, apart)), strict=True):
        assert 0 <= error < max(3 * other, 0.02)


@pytest.mark.parametrize("name", ["dense", "patches"])
def test_a_layer_norm_in_float32_is_not_folded(x, name):
    one, other = (FOLDED[name](jnp.float32, apart=apart) for apart in (False, True))
    variables = variables_of(one, x)
    found, expected = (m.apply(variables, x) for m in (one, other))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("dtype", "update"), [(jnp.float32, False), (jnp.bfloat16, True)])
@pytest.mark.parametrize("name", CONVS)
def test_a_norm_in_float32_or_of_the_batch_s_statistics_is_not_folded(x, name, dtype, update):
    one, other = (ConvNorm(CONVS[name](dtype), update, apart) for apart in (False, True))
    variables = variables_of(one, x)
    found, expected = (m.apply(variables, x, mutable=["batch_stats"]) for m in (one, other))
    assert_trees_equal(found, expected)


def test_layer_norm_equals_flaxs(x):
    layer, reference = LayerNorm(), nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    variables = layer.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1))
    drawn = {
        name: jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, variables["params"].items(), strict=True)
    }
    found, expected = (m.apply({"params": drawn}, x) for m in (layer, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    narrow = LayerNorm(dtype=jnp.bfloat16).apply({"params": drawn}, x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), expected, rtol=0.05, atol=0.1)
