"""Layer normalisation of maps. The kernels are interpreted, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bloodjax.ops import channels_mosaic as mosaic
from bloodjax.ops.map_norm import map_norm

from .reference import assert_near

EPSILON = 1e-6


def arguments(batch=16, size=(3, 2), channels=72):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *size, channels), loc=0.5), jnp.bfloat16)
    scale, bias = (jnp.asarray(rng.normal(size=channels), jnp.float32) for _ in range(2))
    return x, scale, bias


def definition(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    return normal * scale[None, None, None] + bias[None, None, None]


@functools.cache
def expected():
    """Output, output gradient, and the gradients of all arguments."""

    def run(grad, x, scale, bias):
        out, vjp = jax.vjp(definition, x.astype(jnp.float32), scale, bias)
        return out, vjp(grad.astype(jnp.float32))

    x, scale, bias = arguments()
    grad = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.bfloat16)
    out, grads = jax.jit(run)(grad, x, scale, bias)
    return out, grad, grads


@pytest.mark.parametrize("block", [32, 96])
def test_kernels_compute_the_definition(block):
    options = {"epsilon": EPSILON, "block": block, "interpret": True}

    def run(grad, x, scale, bias):
        forward = mosaic.norm_forward(x, scale, bias, **options)
        return *forward, *mosaic.norm_backward(grad, x, scale, **options)

    out, grad, grads = expected()
    fast = {"xla_backend_optimization_level": 0}
    found = jax.jit(run, compiler_options=fast)(grad, *arguments())
    assert [a.dtype for a in found] == [jnp.bfloat16] * 2 + [jnp.float32] * 2
    for a, b in zip(found, (out, *grads), strict=True):
        assert_near(a, b)


def run(x, scale, bias, grad):
    out, vjp = jax.vjp(lambda *a: map_norm(*a, EPSILON), x, scale, bias)
    return out, *vjp(grad)


@pytest.mark.parametrize("devices", [1, 8])
def test_other_platforms_compute_the_definition(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, scale, bias = arguments()
    out, grad, grads = expected()
    found = jax.jit(lambda *operands: run(*operands))(x, scale, bias, grad)
    for a, b in zip(found, (out, *grads), strict=True):
        assert_near(a, b)
    ones, zeros = jnp.ones_like(scale), jnp.zeros_like(bias)
    with_ones = jax.jit(lambda *a: run(*a))(x, ones, zeros, grad)
    without = jax.jit(lambda x, grad: run(x, None, None, grad))(x, grad)
    assert without[2:] == (None, None)
    for a, b in zip(without[:2], with_ones[:2], strict=True):
        assert_near(a, b.astype(jnp.float32))


@pytest.mark.parametrize(("devices", "channels", "kernels"), [(1, 96, 2), (1, 32, 0), (8, 96, 0)])
@pytest.mark.parametrize("scaled", [True, False])
def test_form_by_shape(monkeypatch, devices, channels, kernels, scaled):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, scale, bias = jax.eval_shape(lambda: arguments(64, (6, 6), channels))
    scale, bias = (scale, bias) if scaled else (None, None)

    def text(platform):
        # A new function, because JAX would remember the form that another test has traced.
        function = jax.jit(lambda *a: run(*a))
        exported = export.export(function, platforms=[platform])(x, scale, bias, x)
        return exported.mlir_module()

    assert text("tpu").count("stablehlo.custom_call @tpu_custom_call") == kernels
    # Other platforms neither trace the kernels nor see them.
    assert "tpu_custom_call" not in text("cpu")
