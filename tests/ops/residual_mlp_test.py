"""Residual MLP. The kernels are interpreted, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bloodjax.ops import channels_mosaic as mosaic
from bloodjax.ops import residual_mlp as module
from bloodjax.ops.residual_mlp import residual_mlp

from .reference import assert_near

EPSILON = 1e-6
NAMES = ("shortcut", "x", "offset", "w1", "b1", "w2", "b2")


def arguments(batch=16, size=(3, 2), channels=40, hidden=128):
    """Arguments in the order of `residual_mlp`, without `epsilon`."""
    rng = np.random.default_rng(0)

    def draw(*shape, scale=1.0, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape, scale=scale), dtype)

    return [
        draw(batch, *size, channels, dtype=jnp.bfloat16),
        draw(batch, *size, channels, dtype=jnp.bfloat16),
        draw(channels),
        draw(channels, hidden, scale=channels**-0.5, dtype=jnp.bfloat16),
        draw(hidden),
        draw(hidden, channels, scale=hidden**-0.5, dtype=jnp.bfloat16),
        draw(channels),
        jnp.asarray(rng.choice([0.0, 1.25], batch), jnp.float32),
    ]


def in_float32(shortcut, x, offset, w1, b1, w2, b2, keep):
    """The definition, in float32."""
    x = x + offset
    normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPSILON)
    y = jnp.matmul(normal, w1, precision="highest") + b1
    y = jnp.matmul(jax.nn.gelu(y, approximate=False), w2, precision="highest") + b2
    return shortcut + keep[:, None, None, None] * y


@functools.cache
def expected():
    """Output, output gradient, and the gradients of all arguments but the last."""
    wide = [a.astype(jnp.float32) for a in arguments()]
    with jax.numpy_rank_promotion("allow"):
        out, vjp = jax.vjp(in_float32, *wide)
        grad = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.bfloat16)
        return out, grad, vjp(grad.astype(jnp.float32))[:-1]


def quick(function):
    """`function`, compiled fast."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("block", [32, 96])
def test_kernels_compute_the_definition(block):
    _, x, offset, w1, b1, w2, _, keep = arguments()
    options = {"epsilon": EPSILON, "block": block, "interpret": True}
    out, grad, (shortcut_grad, *grads) = expected()
    found = quick(functools.partial(mosaic.forward, **options))(*arguments())
    assert found.dtype == jnp.bfloat16
    assert_near(found, out)
    np.testing.assert_array_equal(shortcut_grad, grad.astype(jnp.float32))
    backward = quick(functools.partial(mosaic.backward, **options))
    found = backward(grad, x, offset, w1, b1, w2, keep)
    assert [a.dtype for a in found] == [jnp.bfloat16] + 5 * [jnp.float32]
    for name, a, b in zip(NAMES[1:], found, grads, strict=True):
        assert a.shape == b.shape, name
        assert_near(a, b)


def test_a_block_may_be_a_part_of_the_batch():
    *operands, keep = arguments(batch=32, size=(1, 2))
    options = {"epsilon": EPSILON, "interpret": True}
    parts, whole = (
        quick(functools.partial(mosaic.forward, **options, block=block))(*operands, keep)
        for block in (16, 64)
    )
    np.testing.assert_array_equal(parts, whole)


def test_layer_by_layer_computes_the_definition():
    out, grad, grads = expected()
    *operands, keep = arguments()

    def run(keep, grad, *operands):
        out, vjp = jax.vjp(lambda *operands: residual_mlp(*operands, keep, EPSILON), *operands)
        return out, *vjp(grad)

    found = jax.jit(run)(keep, grad, *operands)
    for a, b, operand in zip(found, (out, *grads), (operands[0], *operands), strict=True):
        assert a.dtype == operand.dtype
        assert_near(a, b)
    without, ones = (jax.jit(run)(keep, grad, *operands) for keep in (None, jnp.ones_like(keep)))
    jax.tree.map(np.testing.assert_array_equal, without, ones)


def test_a_dropped_branch_leaves_the_shortcut():
    *operands, keep = arguments()

    @jax.jit
    def output_and_gradient(keep):
        return jax.vjp(lambda keep: residual_mlp(*operands, keep, EPSILON), keep)[0], jax.grad(
            lambda keep: residual_mlp(*operands, keep, EPSILON).astype(jnp.float32).sum()
        )(keep)

    out, gradient = output_and_gradient(jnp.zeros_like(keep))
    np.testing.assert_array_equal(out, operands[0])
    np.testing.assert_array_equal(gradient, np.zeros(len(keep)))


def gradients(*operands):
    out, vjp = jax.vjp(lambda *operands: residual_mlp(*operands, None, EPSILON), *operands)
    return out, *vjp(out)


def lowered(function, operands, platform="tpu"):
    # A new function, because JAX would remember the form that another test has traced.
    return export.export(jax.jit(lambda *a: function(*a)), platforms=[platform])(*operands)


@pytest.mark.parametrize(("channels", "kernels"), [(96, 2), (192, 2), (384, 2), (768, 0), (40, 0)])
def test_form_by_shape(monkeypatch, channels, kernels):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = jax.eval_shape(lambda: arguments(64, (6, 6), channels, 4 * channels)[:-1])
    exported = lowered(gradients, shapes)
    text = exported.mlir_module()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == kernels
    if kernels:
        assert "dot_general" not in text
    assert [a.dtype for a in exported.out_avals] == [
        jnp.bfloat16,
        *(a.dtype for a in shapes),
    ]
    # Other platforms neither trace the kernels nor see them.
    assert "tpu_custom_call" not in lowered(gradients, shapes, "cpu").mlir_module()


def test_several_devices_compute_layer_by_layer(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    shapes = jax.eval_shape(lambda: arguments(64, (6, 6), 96, 384)[:-1])
    assert "tpu_custom_call" not in lowered(gradients, shapes).mlir_module()


def test_under_vmap_lowers_for_tpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = jax.eval_shape(lambda: arguments(16, (2, 2), 64, 256)[:-1])
    stacked = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in shapes[:2]]
    mapped = jax.vmap(gradients, in_axes=(0, 0, *[None] * 5))
    exported = lowered(mapped, [*stacked, *shapes[2:]])
    assert exported.mlir_module().count("stablehlo.custom_call @tpu_custom_call") == 2
    assert [a.shape for a in exported.out_avals] == [(3, *a.shape) for a in (shapes[0], *shapes)]


def test_float32_has_no_kernels(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert module.uses_kernels((64, 6, 6, 96), 384, jnp.bfloat16)
    assert not module.uses_kernels((64, 6, 6, 96), 384, jnp.float32)
