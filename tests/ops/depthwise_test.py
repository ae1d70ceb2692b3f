import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.ops.depthwise import depthwise_branch, depthwise_conv

from .reference import grouped_conv

# (height, width), kernel, stride, padding. Small maps use the Toeplitz method, larger ones the
# shifted one; 7x7 is the limit. The kernel gradient of wide maps is computed in tiles.
CASES = [
    ((1, 1), (7, 7), 1, None),
    ((2, 3), (5, 5), 1, None),
    ((6, 6), (7, 7), 1, ((0, 3), (2, 1))),
    ((7, 7), (7, 7), 1, None),
    ((6, 5), (3, 3), 1, ((2, 0), (0, 1))),
    ((8, 8), (7, 7), 1, None),
    ((25, 24), (7, 7), 1, ((1, 4), (3, 3))),
    ((12, 13), (5, 5), 1, ((0, 0), (0, 0))),
    ((10, 10), (3, 3), 1, ((4, 3), (3, 5))),
    ((1, 1), (3, 3), 2, None),
    ((24, 25), (3, 3), 2, ((0, 1), (0, 1))),
    ((7, 6), (5, 5), 2, ((1, 2), (2, 1))),
    ((25, 12), (5, 5), 2, None),
    ((13, 12), (7, 7), 2, ((2, 3), (3, 2))),
    ((9, 20), (7, 3), 2, ((3, 3), (1, 1))),
    ((5, 70), (3, 3), 1, None),
    ((11, 10), (2, 2), 3, ((1, 0), (0, 1))),
]


def padding_of(kernel, padding):
    return padding or tuple((k // 2, k // 2) for k in kernel)


def output_and_gradients(function, x, kernel, direction):
    @jax.jit
    def run(x, kernel, direction):
        out, vjp = jax.vjp(function, x, kernel)
        return out, *vjp(direction)

    return run(x, kernel, direction)


def assert_close(found, expected):
    assert len(found) == len(expected) == 3
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """A case's arguments, and our output and gradients."""
    size, window, stride, padding = request.param
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3)).astype(np.float32)
    pads = padding_of(window, padding)
    out = [(n + sum(p) - k) // stride + 1 for n, p, k in zip(size, pads, window, strict=True)]
    direction = rng.normal(size=(2, *out, 3)).astype(np.float32)
    function = functools.partial(depthwise_conv, stride=stride, padding=padding)
    found = output_and_gradients(function, x, kernel, direction)
    return x, kernel, direction, stride, pads, found


def test_equals_the_grouped_convolution_of_xla(case):
    x, kernel, direction, stride, pads, found = case
    reference = functools.partial(grouped_conv, stride=stride, padding=pads)
    assert_close(found, output_and_gradients(reference, x, kernel, direction))


def test_equals_the_grouped_convolution_of_torch(case):
    torch = pytest.importorskip("torch")
    x, kernel, direction, stride, (height, width), found = case
    tx = torch.tensor(x, requires_grad=True)
    tk = torch.tensor(kernel, requires_grad=True)
    padded = torch.nn.functional.pad(tx.permute(0, 3, 1, 2), (*width, *height))
    weight = tk.permute(2, 0, 1)[:, None]
    out = torch.nn.functional.conv2d(padded, weight, stride=stride, groups=x.shape[-1])
    out = out.permute(0, 2, 3, 1)
    out.backward(torch.tensor(direction))
    assert_close(found, (out.detach().numpy(), tx.grad.numpy(), tk.grad.numpy()))


@pytest.mark.full
@pytest.mark.parametrize("size", [6, 12])
def test_bfloat16_stays_bfloat16_and_is_summed_in_float32(size):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, size, size, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(7, 7, 4)), jnp.bfloat16)
    out, *gradients = output_and_gradients(depthwise_conv, x, kernel, x)
    exact = output_and_gradients(depthwise_conv, *(a.astype(jnp.float32) for a in (x, kernel, x)))
    for a, b in zip((out, *gradients), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Within bfloat16's last bit, which sums in bfloat16 would not achieve.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("size", [5, 9])
def test_under_vmap(size):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 2, size, size, 4)).astype(np.float32)
    kernel = rng.normal(size=(7, 7, 4)).astype(np.float32)
    found = jax.jit(jax.vmap(depthwise_conv, in_axes=(0, None)))(x, kernel)
    expected = depthwise_conv(jnp.asarray(x.reshape(6, size, size, 4)), jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.full
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="inspects the CPU's program")
@pytest.mark.parametrize(("size", "stride"), [(6, 1), (12, 1), (12, 2)])
def test_no_grouped_convolution_on_cpu(size, stride):
    shapes = (
        jax.ShapeDtypeStruct((2, size, size, 4), jnp.float32),
        jax.ShapeDtypeStruct((7, 7, 4), jnp.float32),
    )

    def compiled(function):
        gradient = jax.grad(lambda x, kernel: jnp.sum(function(x, kernel) ** 2), (0, 1))
        return jax.jit(gradient).lower(*shapes).compile().as_text()

    def native(x, kernel):
        return grouped_conv(x, kernel, stride, ((3, 3), (3, 3)))

    assert "feature_group_count" in compiled(native)
    assert "convolution(" not in compiled(functools.partial(depthwise_conv, stride=stride))


def test_a_branch_adds_the_gradient_of_its_shortcut():
    rng = np.random.default_rng(0)
    x, kernel, *grads = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 5, 4, 3), (3, 3, 3), (2, 5, 4, 3), (2, 5, 4, 3))
    )
    padding = ((1, 1), (1, 1))

    @jax.jit
    def both(x, kernel, shortcut, grad):
        outs, vjp = jax.vjp(lambda *a: depthwise_branch(*a, padding=padding), x, kernel)
        plain, plain_vjp = jax.vjp(lambda *a: depthwise_conv(*a, padding=padding), x, kernel)
        x_grad, kernel_grad = plain_vjp(grad)
        return (*outs, *vjp((shortcut, grad))), (x, plain, shortcut + x_grad, kernel_grad)

    for found, expected in zip(*both(x, kernel, *grads), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_few_images_are_convolved_by_slices_where_no_gradient_follows():
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(5, 5, 8)).astype(np.float32)
    alone = jax.jit(depthwise_conv)

    def followed(x, kernel):
        return jax.vjp(depthwise_conv, x, kernel)[0]

    for batch, slices in ((1, True), (4, True), (5, False)):
        x = rng.normal(size=(batch, 3, 3, 8)).astype(np.float32)
        np.testing.assert_allclose(alone(x, kernel), jax.jit(followed)(x, kernel), atol=1e-5)
        text = alone.lower(x, kernel).as_text()
        assert ("dot_general" not in text) == slices
        assert "dot_general" in jax.jit(followed).lower(x, kernel).as_text()
