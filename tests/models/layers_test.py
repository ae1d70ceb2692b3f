import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.distributed import sharding
from bloodjax.models.layers import (
    Dense,
    DepthwiseConv,
    Dropout,
    PatchConv,
    example_keys,
    micro_batch,
)
from bloodjax.ops.depthwise import depthwise_conv


def dropped(layer, x, key=0):
    return layer.apply({}, x, True, rngs={"dropout": jax.random.key(key)})


def randomised(variables):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), variables)


@pytest.mark.parametrize(("size", "height", "width"), [(4, 12, 8), (4, 15, 13), (2, 7, 8)])
def test_patch_conv_is_a_strided_convolution_without_padding(size, height, width):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 3)), jnp.float32)
    layer = PatchConv(5, size)
    variables = randomised(layer.init(jax.random.key(0), x))
    reference = nn.Conv(5, (size, size), strides=size, padding="VALID")
    found, expected = layer.apply(variables, x), reference.apply(variables, x)
    assert found.shape == (2, height // size, width // size, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_depthwise_conv_adds_a_bias_to_the_operation():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 3)), jnp.float32)
    layer = DepthwiseConv(3, stride=2, dtype=jnp.bfloat16)
    variables = randomised(layer.init(jax.random.key(0), x))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.dtype == bias.dtype == jnp.float32
    found = layer.apply(variables, x)
    assert found.dtype == jnp.bfloat16
    expected = depthwise_conv(x, kernel, stride=2) + bias[None, None, None]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.03, atol=0.05)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
    out = np.asarray(dropped(Dropout(rate), jnp.ones((64, 500))))
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(np.mean(out == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / out.size)
    assert len(np.unique(out, axis=0)) == 64  # every example has a mask of its own


def test_dropout_depends_on_its_key_alone():
    x = jnp.ones((4, 100))
    np.testing.assert_array_equal(dropped(Dropout(0.5), x, 1), dropped(Dropout(0.5), x, 1))
    assert np.any(dropped(Dropout(0.5), x, 1) != dropped(Dropout(0.5), x, 2))


def test_a_micro_batch_has_the_keys_of_its_examples_in_the_whole():
    whole = jax.random.key_data(example_keys(jax.random.key(0), 12, None))
    with micro_batch(jnp.int32(2), 3):
        part = jax.random.key_data(example_keys(jax.random.key(0), 4, None))
    np.testing.assert_array_equal(part, whole[2::3])
    np.testing.assert_array_equal(
        jax.random.key_data(example_keys(jax.random.key(0), 12, None)), whole
    )


def test_dropout_is_the_identity_in_inference_and_at_rate_zero():
    x = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True), x)


def test_broadcast_dropout_drops_whole_examples():
    out = np.asarray(dropped(Dropout(0.25, broadcast=True), jnp.ones((2000, 2, 2, 3))))
    first = out[:, :1, :1, :1]
    np.testing.assert_array_equal(out, np.broadcast_to(first, out.shape))
    assert abs(np.mean(first == 0) - 0.25) < 0.05


@pytest.mark.full
@pytest.mark.parametrize("broadcast", [False, True])
def test_the_mask_is_the_same_however_the_batch_lies_on_the_devices(broadcast):
    x = jnp.ones((16, 6))
    key = jax.random.key(4)
    expected = dropped(Dropout(0.5, broadcast), x, 4)
    split = sharding.by_batch(sharding.mesh())
    jitted = jax.jit(lambda x: dropped(Dropout(0.5, broadcast), x, 4), in_shardings=split)
    np.testing.assert_array_equal(jitted(x), expected)

    def on_one_device(x):
        layer = Dropout(0.5, broadcast, axis_name="data")
        return layer.apply({}, x, True, rngs={"dropout": key})

    mapped = jax.pmap(on_one_device, axis_name="data")(x.reshape(8, 2, 6))
    np.testing.assert_array_equal(mapped.reshape(16, 6), expected)


def test_example_keys_differ_and_do_not_depend_on_the_devices():
    key = jax.random.key(5)
    whole = jax.random.key_data(example_keys(key, 16, None))
    assert len(np.unique(whole, axis=0)) == 16
    np.testing.assert_array_equal(whole[:3], jax.random.key_data(example_keys(key, 3, None)))
    shares = jax.pmap(
        lambda _: jax.random.key_data(example_keys(key, 2, "data")), axis_name="data"
    )(jnp.zeros(8))
    np.testing.assert_array_equal(shares.reshape(whole.shape), whole)


def test_dense_is_flaxs():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 3, 3, 5)), jnp.float32)
    expected = nn.Dense(4, bias_init=nn.initializers.normal())
    variables = expected.init(jax.random.key(0), x)
    np.testing.assert_allclose(Dense(4).apply(variables, x), expected.apply(variables, x), 1e-5)
    shapes = jax.eval_shape(Dense(4).init, jax.random.key(0), x)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
