"""Tests of bloodjax/ops/pointwise.py, against the plain matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.ops.pointwise import pointwise_conv


@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (6, 7), (2, 3, 7)])
@pytest.mark.parametrize("features", [3, 11])
def test_equals_the_matrix_product(shape, features):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(7, features)), jnp.float32)
    direction = jnp.asarray(rng.normal(size=(*shape[:-1], features)), jnp.float32)

    def run(function):
        out, vjp = jax.vjp(function, x, kernel)
        return out, *vjp(direction)

    found = jax.jit(lambda: run(pointwise_conv))()
    expected = jax.jit(lambda: run(jnp.matmul))()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [3, 11])
def test_the_kernel_gradient_in_tiles_equals_the_matrix_product(features):
    """A map of two tiles and a rest."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 31, 29, 7)).astype(np.float32)
    direction = rng.normal(size=(3, 31, 29, features)).astype(np.float32)
    kernel = jnp.ones((7, features), jnp.float32)
    _, vjp = jax.vjp(lambda kernel: pointwise_conv(jnp.asarray(x), kernel), kernel)
    (found,) = jax.jit(vjp)(jnp.asarray(direction))
    exact = np.einsum("bhwc,bhwo->co", x.astype(np.float64), direction)
    assert np.abs(found - exact).max() <= 2e-6 * np.abs(exact).max()


def test_cpu_and_accelerator_forms_agree():
    x, kernel = jnp.ones((1200, 7), jnp.bfloat16), jnp.full((7, 2), 2.0, jnp.bfloat16)

    def gradient(kernel):
        return jax.grad(lambda k: jnp.sum(pointwise_conv(x, k).astype(jnp.float32)))(kernel)

    found = jax.jit(gradient)(kernel)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), np.full((7, 2), 1200.0))
    lowered = jax.export.export(jax.jit(gradient), platforms=["cuda", "tpu"])(kernel)
    assert "stablehlo.while" not in lowered.mlir_module()
    lowered = jax.export.export(jax.jit(gradient), platforms=["cpu"])(kernel)
    assert "stablehlo.while" in lowered.mlir_module()
