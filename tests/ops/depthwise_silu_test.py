"""Depthwise convolution between two SiLUs. The kernels are interpreted, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bloodjax.ops import depthwise_blocks
from bloodjax.ops import depthwise_silu_mosaic as mosaic
from bloodjax.ops.depthwise_silu import silu_depthwise_silu

from .reference import assert_near, grouped_conv

CASES = [
    ((4, 3), 3, 1, ((1, 1), (1, 1)), True),
    ((5, 4), 3, 2, ((0, 1), (0, 1)), True),
    ((4, 4), 3, 1, ((1, 1), (1, 1)), False),
]
CHANNELS, BATCH = 5, 16


def arguments(size, window):
    rng = np.random.default_rng(0)
    x, kernel, offset, shift = (
        rng.normal(size=shape)
        for shape in ((BATCH, *size, CHANNELS), (window, window, CHANNELS), (CHANNELS,), CHANNELS)
    )
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (x, kernel))
    shift, offset = (jnp.asarray(a, jnp.float32) for a in (shift, offset))
    return x, shift, kernel, offset


@functools.cache
def expected(case):
    """Results, their gradients, and the gradients of the arguments, in float32."""
    size, window, stride, padding, activated = case

    def definition(x, shift, kernel, offset):
        x = jax.nn.silu(x + shift[None, None, None]) if activated else x
        y = grouped_conv(x, kernel, stride=stride, padding=padding) + offset[None, None, None]
        return jax.nn.silu(y), jax.nn.silu(y).mean((1, 2))

    def run(*operands):
        out, vjp = jax.vjp(definition, *(a.astype(jnp.float32) for a in operands))
        rng = np.random.default_rng(1)
        grads = [jnp.asarray(rng.normal(size=a.shape), jnp.bfloat16) for a in out]
        grads[1] = grads[1].astype(jnp.float32)
        return out, grads, vjp(tuple(a.astype(jnp.float32) for a in grads))

    return jax.jit(run)(*arguments(size, window))


@pytest.mark.parametrize("unrolled", [10**6, 0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compute_the_definition(monkeypatch, case, unrolled):
    monkeypatch.setattr(depthwise_blocks, "_UNROLLED", unrolled)
    size, window, stride, padding, activated = case
    options = {"stride": stride, "padding": padding, "silu": activated, "interpret": True}

    def run(x, shift, kernel, offset, *grads):
        shifted, *results = mosaic.forward(x, shift, kernel, offset, **options)
        return results, mosaic.backward(shifted, *grads, x, shift, kernel, **options)

    wanted, grads, wanted_grads = expected(case)
    operands = arguments(size, window)
    fast = {"xla_backend_optimization_level": 0}
    results, found = jax.jit(run, compiler_options=fast)(*operands, *grads)
    assert [a.dtype for a in results] == [jnp.bfloat16, jnp.float32]
    for a, b in zip((*results, *found), (*wanted, *wanted_grads), strict=True):
        assert_near(a, b, mean=0.004)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_by_layer_computes_the_definition(case):
    size, window, stride, padding, activated = case
    wanted, grads, wanted_grads = expected(case)

    def run(grads, *operands):
        options = {"stride": stride, "padding": padding}
        out, vjp = jax.vjp(functools.partial(silu_depthwise_silu, **options), *operands)
        return *out, *vjp(tuple(grads))

    x, shift, kernel, offset = arguments(size, window)
    operands = (x, shift if activated else None, kernel, offset)
    found = jax.jit(run)(grads, *operands)
    for a, b, operand in zip(found, (*wanted, *wanted_grads), (x, offset, *operands), strict=True):
        assert (a is None) == (operand is None)
        if a is not None:
            assert a.dtype == operand.dtype
            assert_near(a, b, mean=0.004)


def gradients(*operands):
    options = {"stride": 2, "padding": ((1, 1), (1, 1))}
    out, vjp = jax.vjp(functools.partial(silu_depthwise_silu, **options), *operands)
    return *out, *vjp(out)


def lowered(function, shapes, platform="tpu"):
    # A new function, because JAX would remember the form that another test has traced.
    return export.export(jax.jit(lambda *a: function(*a)), platforms=[platform])(*shapes)


@pytest.mark.parametrize(("devices", "channels", "kernels"), [(1, 64, 3), (1, 32, 0), (8, 64, 0)])
def test_form_by_shape(monkeypatch, devices, channels, kernels):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    shapes = [
        jax.ShapeDtypeStruct((16, 6, 5, channels), jnp.bfloat16),
        jax.ShapeDtypeStruct((channels,), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, channels), jnp.bfloat16),
        jax.ShapeDtypeStruct((channels,), jnp.float32),
    ]
    exported = lowered(gradients, shapes)
    assert exported.mlir_module().count("stablehlo.custom_call @tpu_custom_call") == kernels
    assert [a.shape for a in exported.out_avals[2:]] == [a.shape for a in shapes]
    # Other platforms neither trace the kernels nor see them.
    assert "tpu_custom_call" not in lowered(gradients, shapes, "cpu").mlir_module()
    stacked = jax.ShapeDtypeStruct((3, *shapes[0].shape), jnp.bfloat16)
    mapped = lowered(jax.vmap(gradients, in_axes=(0, None, None, None)), [stacked, *shapes[1:]])
    assert mapped.out_avals[2].shape == stacked.shape
