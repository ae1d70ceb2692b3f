import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bloodjax.ops import elementwise
from bloodjax.ops.elementwise import gelu, layer_norm, normalise, relu, relu6, silu

EPSILON = 1e-6


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_gradients(function, *arguments):
    out, vjp = jax.vjp(function, *arguments)
    return out, *vjp(draw(*out.shape, seed=9))


def assert_close(found, expected, tolerance=2e-6):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + EPSILON) * scale[None, None] + bias[None, None]


def test_gelu_and_its_gradient_equal_jaxs():
    x = jnp.concatenate([draw(500), jnp.linspace(-12.0, 12.0, 201)])
    exact = with_gradients(lambda x: jax.nn.gelu(x, approximate=False), x)
    assert_close(with_gradients(gelu, x), exact)


def test_gelu_and_its_gradient_equal_torchs():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    x = draw(500) * 3
    tx = torch.tensor(np.array(x), requires_grad=True)
    out = torch.nn.functional.gelu(tx)
    out.backward(torch.tensor(np.array(draw(500, seed=9))))
    assert_close(with_gradients(gelu, x), (out.detach().numpy(), tx.grad.numpy()))


def test_gelu_of_bfloat16_is_rounded_once():
    x = draw(500).astype(jnp.bfloat16)
    found = gelu(x)
    assert found.dtype == jnp.bfloat16
    expected = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))
    assert jax.grad(lambda x: gelu(x).sum())(x).dtype == jnp.bfloat16


def test_the_distribution_function_of_tpus_is_exact_to_2e_5():
    x = jnp.concatenate([jnp.linspace(-6.0, 6.0, 2001), jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4])])
    found = jax.jit(elementwise.normal_cdf_by_tanh)(x)
    np.testing.assert_allclose(found, jax.scipy.stats.norm.cdf(x), atol=2e-5)
    assert found.min() >= 0
    assert found.max() <= 1


def test_normalise_equals_layer_norm_without_scale_and_bias():
    x = (3.0 + 2.0 * draw(5, 7, 33)).astype(jnp.bfloat16)
    wide = x.astype(jnp.float32)
    exact = functools.partial(layer_norm, scale=jnp.ones(33), bias=jnp.zeros(33), epsilon=EPSILON)
    out, vjp = jax.vjp(lambda x: normalise(x, EPSILON), x)
    expected, expected_vjp = jax.vjp(exact, wide)
    grad = draw(5, 7, 33, seed=9).astype(jnp.bfloat16)
    (found_grad,), (expected_grad,) = vjp(grad), expected_vjp(grad.astype(jnp.float32))
    assert out.dtype == found_grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-3)
    np.testing.assert_allclose(found_grad.astype(jnp.float32), expected_grad, rtol=0.02, atol=0.01)


def test_normalise_of_equal_channels_is_finite():
    x = jnp.full((2, 33), 100.3, jnp.bfloat16)
    out, vjp = jax.vjp(lambda x: normalise(x, EPSILON), x)
    assert np.isfinite(out.astype(jnp.float32)).all()
    assert np.isfinite(vjp(jnp.ones_like(x))[0].astype(jnp.float32)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("ours", "jaxs"), [(relu, jax.nn.relu), (relu6, jax.nn.relu6)])
def test_relu_and_its_gradient_equal_jaxs_to_the_bit(ours, jaxs, dtype):
    x = jnp.concatenate([draw(500) * 5, jnp.array([0.0, -0.0, 6.0, jnp.inf, -jnp.inf])])
    found, expected = (
        jax.vjp(function, x.astype(dtype)) for function in (jax.jit(ours), jax.jit(jaxs))
    )
    assert found[0].dtype == dtype
    np.testing.assert_array_equal(found[0], expected[0])
    grad = draw(505, seed=9).astype(dtype)
    np.testing.assert_array_equal(found[1](grad)[0], expected[1](grad)[0])


def test_silu_and_its_gradient_equal_jaxs():
    x, grad = draw(500) * 5, draw(500, seed=9)
    (out, vjp), (expected, expected_vjp) = jax.vjp(silu, x), jax.vjp(jax.nn.silu, x)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(vjp(grad)[0], expected_vjp(grad)[0])
    narrow, narrow_grad = x.astype(jnp.bfloat16), grad.astype(jnp.bfloat16)
    out, vjp = jax.vjp(silu, narrow)
    expected, expected_vjp = jax.vjp(jax.nn.silu, narrow.astype(jnp.float32))
    assert out.dtype == vjp(narrow_grad)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8)
    (expected_grad,) = expected_vjp(narrow_grad.astype(jnp.float32))
    np.testing.assert_allclose(
        vjp(narrow_grad)[0].astype(jnp.float32), expected_grad, rtol=2**-8, atol=1e-6
    )


@pytest.mark.parametrize("function", [relu, relu6])
def test_relu_stores_only_its_output(function):
    _, vjp = jax.vjp(function, x := draw(500) * 5)
    (stored,) = (leaf for leaf in jax.tree.leaves(vjp) if leaf.shape == x.shape)
    np.testing.assert_array_equal(stored, function(x))


@pytest.mark.full
def test_layer_norm_and_its_gradients_equal_the_plain_form():
    x, scale, bias = 3.0 + 2.0 * draw(5, 7, 33), draw(33, seed=1), draw(33, seed=2)
    found = with_gradients(lambda *a: layer_norm(*a, EPSILON), x, scale, bias)
    assert_close(found, with_gradients(plain_layer_norm, x, scale, bias))


def test_layer_norm_and_its_gradients_equal_torchs():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    arguments = (3.0 + 2.0 * draw(5, 7, 33), draw(33, seed=1), draw(33, seed=2))
    leaves = [torch.tensor(np.array(a), requires_grad=True) for a in arguments]
    out = torch.nn.functional.layer_norm(leaves[0], (33,), *leaves[1:], EPSILON)
    out.backward(torch.tensor(np.array(draw(5, 7, 33, seed=9))))
    found = with_gradients(lambda *a: layer_norm(*a, EPSILON), *arguments)
    assert_close(found, [a.detach().numpy() for a in (out, *(leaf.grad for leaf in leaves))])


def test_layer_norm_keeps_its_digits_far_from_zero():
    x = 1e4 + draw(4, 8, 64)
    exact = np.array(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    found = layer_norm(x, jnp.ones(64), jnp.zeros(64), EPSILON)
    np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.parametrize("function", [gelu, lambda x: layer_norm(x, x[0], x[0], EPSILON)])
def test_only_the_input_is_stored_for_the_backward_pass(function):
    x = draw(64, 32)
    _, vjp = jax.vjp(function, x)
    maps = [leaf for leaf in jax.tree.leaves(vjp) if getattr(leaf, "size", 0) >= x.size]
    assert len(maps) == 1


@pytest.mark.parametrize(
    "function",
    [
        gelu,
        silu,
        lambda x: normalise(x, EPSILON),
        lambda x: layer_norm(x, jnp.ones(8), jnp.zeros(8), EPSILON),
    ],
)
def test_a_gpu_writes_gradients_in_bfloat16(function):
    def barriers(platform, dtype):
        def gradient(x):
            return jax.vjp(function, x)[1](x)

        shape = jax.ShapeDtypeStruct((4, 8), dtype)
        exported = export.export(jax.jit(gradient), platforms=[platform])(shape)
        return exported.mlir_module().count("optimization_barrier")

    assert barriers("cuda", jnp.bfloat16) >= 1
    assert barriers("cpu", jnp.bfloat16) == barriers("tpu", jnp.bfloat16) == 0
    assert barriers("cuda", jnp.float32) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_layer_norm_computes_a_narrow_map_in_float32(dtype):
    x, scale, bias = (3.0 + 2.0 * draw(5, 7, 33)).astype(dtype), draw(33, seed=1), draw(33, seed=2)
    exact = plain_layer_norm(x.astype(jnp.float32), scale, bias)
    found, vjp = jax.vjp(lambda *a: layer_norm(*a, EPSILON), x, scale, bias)
    # Within the last bit of the result, which a computation in `dtype` would not achieve.
    precision = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=precision, atol=1e-5)
    assert [a.dtype for a in vjp(found)] == [dtype, jnp.float32, jnp.float32]
