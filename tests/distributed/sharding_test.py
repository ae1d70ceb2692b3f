import jax
import numpy as np
import pytest

from bloodjax.distributed import sharding
from bloodjax.errors import UserError

from ..trees import assert_trees_equal


def shard_shapes(array):
    return [shard.data.shape for shard in array.addressable_shards]


def test_the_mesh_takes_all_devices_or_those_given():
    assert sharding.mesh().devices.tolist() == jax.devices()
    assert sharding.mesh(jax.devices()[:2]).devices.tolist() == jax.devices()[:2]
    assert sharding.mesh().axis_names == (sharding.AXIS,)


def test_whole_and_split_arrays():
    x, mesh = np.arange(48).reshape(16, 3), sharding.mesh()
    whole = jax.device_put(x, sharding.replicated(mesh))
    assert shard_shapes(whole) == [(16, 3)] * 8
    split = jax.device_put(x, sharding.by_batch(mesh))
    assert shard_shapes(split) == [(2, 3)] * 8
    np.testing.assert_array_equal(split.addressable_shards[3].data, x[6:8])
    steps = jax.device_put(x.T, sharding.by_step_and_batch(mesh))
    assert shard_shapes(steps) == [(3, 2)] * 8
    np.testing.assert_array_equal(steps.addressable_shards[3].data, x.T[:, 6:8])


def test_examples_per_device():
    assert sharding.per_device(64) == 8
    with pytest.raises(UserError, match="batch_size is 12, expected a multiple of the 8 devices"):
        sharding.per_device(12)
    assert sharding.per_device(64, 4) == 8
    message = "batch_size is 24, expected a multiple of the 8 devices times the 2 accumulate_steps"
    with pytest.raises(UserError, match=message):
        sharding.per_device(24, 2)
    assert sharding.per_device(16, pairs=True) == 2
    message = "batch_size is 24, expected an even number on each of the 8 devices with mixup"
    with pytest.raises(UserError, match=message):
        sharding.per_device(24, pairs=True)


def test_unstack_is_the_inverse_of_stack():
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(4)}
    stacked = sharding.stack(tree, sharding.mesh())
    assert stacked["a"].shape == (8, 2, 3)
    assert shard_shapes(stacked["b"]) == [(1,)] * 8
    assert_trees_equal(sharding.unstack(stacked), tree)


def test_split_gives_each_device_its_share_of_every_batch():
    x = np.arange(96).reshape(2, 16, 3)
    split = sharding.split({"a": x}, sharding.mesh())["a"]
    assert split.shape == (8, 2, 2, 3)
    assert shard_shapes(split) == [(1, 2, 2, 3)] * 8
    np.testing.assert_array_equal(split.addressable_shards[3].data[0], x[:, 6:8])
