import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.ops import conv as module
from bloodjax.ops.conv import conv, narrow_stage

from .reference import dense_conv

# (height, width), kernel, stride, padding, channels: all but the first two take tiles on CPU, the
# third of both maps together.
CASES = [
    ((9, 11), (3, 3), 1, ((1, 1), (1, 1)), 16),
    ((40, 40), (3, 3), 1, ((1, 1), (1, 1)), 3),
    ((12, 11), (3, 3), 1, ((1, 1), (1, 1)), 16),
    ((40, 33), (3, 3), 1, ((1, 1), (1, 1)), 16),
    ((35, 34), (3, 3), 1, ((0, 0), (0, 0)), 16),
    ((66, 67), (3, 3), 2, ((0, 1), (1, 1)), 17),
    ((70, 65), (5, 3), 2, ((2, 2), (0, 1)), 16),
    ((34, 40), (1, 7), 1, ((0, 0), (3, 3)), 16),
]


def output_and_gradients(function, x, kernel):
    out, vjp = jax.vjp(function, x, kernel)
    return out, *vjp(out)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_xlas_convolution_and_its_gradients(case):
    size, window, stride, padding, channels = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*window, channels, 5)), jnp.float32)
    options = {"stride": stride, "padding": padding}
    found, expected = (
        jax.jit(functools.partial(output_and_gradients, functools.partial(f, **options)))(x, kernel)
        for f in (conv, dense_conv)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_bfloat16_gradients_are_summed_in_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 40, 40, 16)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 16, 4)), jnp.bfloat16)
    function = functools.partial(conv, padding=((1, 1), (1, 1)))
    out, vjp = jax.vjp(function, x, kernel)
    _, found = jax.jit(vjp)(out)
    _, exact_vjp = jax.vjp(function, x.astype(jnp.float32), kernel.astype(jnp.float32))
    _, exact = exact_vjp(out.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    assert np.abs(found.astype(jnp.float32) - exact).max() <= 2.0**-8 * np.abs(exact).max()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="looks at what a CPU runs")
def test_large_maps_take_tiles_on_cpu():
    def convolutions(side):
        shapes = (
            jax.ShapeDtypeStruct((2, side, side, 16), jnp.float32),
            jax.ShapeDtypeStruct((3, 3, 16, 4), jnp.float32),
        )
        loss = jax.grad(lambda x, k: jnp.sum(conv(x, k, padding=((1, 1), (1, 1)))), (0, 1))
        return jax.jit(loss).lower(*shapes).as_text(dialect="hlo").count(" convolution(")

    assert convolutions(12) < convolutions(9)


def drawn_stage(dtype=jnp.float32):
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shapes = ((3, 5), (5, 5))
    layers = [{"kernel": draw(3, 3, *shape), "bias": draw(shape[1])} for shape in shapes]
    return draw(2, 6, 8, 3).astype(dtype), layers, draw(2, 3, 4, 5).astype(dtype)


def test_a_stage_in_pairs_of_columns_equals_the_plain_one():
    x, layers, grad = drawn_stage()
    results = []
    for form in (module._stage, module._stage_in_pairs):
        out, vjp = jax.vjp(lambda *a, form=form: form(*a, names=("a", "b")), x, layers)
        results.append((out, *vjp(grad)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4), *results)


def test_a_narrow_stage_takes_bfloat16():
    x, layers, grad = drawn_stage(jnp.bfloat16)
    out, vjp = jax.vjp(lambda *a: narrow_stage(*a, ("a", "b")), x, layers)
    expected = module._stage(x.astype(jnp.float32), layers, names=("a", "b"))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), expected, atol=0.03 * float(jnp.abs(expected).max())
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(vjp(grad)[1])} == {jnp.dtype(jnp.float32)}


def test_of_equal_halves_one_has_the_gradient():
    x, grad = jnp.array([[1.0, 2.0, 1.0, 3.0]]), jnp.array([[5.0, 7.0]])
    out, vjp = jax.vjp(module._larger_half, x)
    np.testing.assert_array_equal(out, [[1.0, 3.0]])
    np.testing.assert_array_equal(vjp(grad)[0], [[5.0, 0.0, 0.0, 7.0]])
