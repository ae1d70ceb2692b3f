import jax
import jax.numpy as jnp
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


def test_chips_that_fill_a_box_are_a_box():
    coords = [(x, y, 0) for y in range(2) for x in range(4)]
    assert sharding._box(coords) == (4, 2)
    assert sharding._box(coords[:4]) == (4,)
    assert sharding._box(coords[:3] + coords[4:5]) == (4,)
    assert sharding._box([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) == (2, 2, 2)
    assert sharding._box([(), ()]) == (2,)


@pytest.mark.parametrize("box", [(8,), (4, 2), (2, 2, 2)])
@pytest.mark.parametrize("bundle", [1, 5000, 2**24])
def test_sums_scattered_in_bundles_along_the_sides_of_a_box_are_the_sums(box, bundle, monkeypatch):
    monkeypatch.setattr(sharding, "_BUNDLE", bundle)
    layout = sharding.Layout(sharding.mesh(), "fsdp")
    layout._phases = sharding._phases(box)
    rng = np.random.default_rng(0)
    tree = {
        name: rng.integers(0, 9, (8, *shape)).astype(np.float32)
        for name, shape in {"last": (4, 512), "first": (64, 30), "whole": (7,)}.items()
    }
    like = jax.tree.map(lambda x: x[0], tree)
    specs, dtypes = layout.specs(like), jax.tree.map(lambda x: x.dtype, like)
    wanted = jax.tree.map(lambda x: True, like)
    scatter = jax.shard_map(
        lambda tree: layout.reduce(jax.tree.map(lambda x: x[0], tree), specs, dtypes, wanted),
        mesh=layout.mesh,
        in_specs=jax.sharding.PartitionSpec(sharding.AXIS),
        out_specs=specs,
        check_vma=False,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(scatter)(tree),
        jax.tree.map(lambda x: x.sum(0), tree),
    )


@pytest.mark.parametrize("box", [(8,), (4, 2), (2, 2, 2)])
def test_parts_gathered_along_the_sides_of_a_box_are_the_arrays(box):
    layout = sharding.Layout(sharding.mesh(), "fsdp")
    layout._phases = sharding._phases(box)
    rng = np.random.default_rng(0)
    shapes = {"last": (4, 512), "first": (64, 30), "whole": (7,)}
    tree = {name: rng.integers(0, 9, shape).astype(np.float32) for name, shape in shapes.items()}
    specs = layout.specs(tree)
    gather = jax.shard_map(
        lambda tree: layout.gather(tree, specs),
        mesh=layout.mesh,
        in_specs=(specs,),
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )
    assert_trees_equal(jax.jit(gather)(tree), tree)


def test_bundles_have_one_dtype_and_a_limited_size(monkeypatch):
    monkeypatch.setattr(sharding, "_BUNDLE", 10)
    sizes = [4, 5, 3, 20, 1]
    dtypes = ["float32", "bfloat16", "float32", "float32", "float32"]
    arrays = {i: jnp.zeros(*each) for i, each in enumerate(zip(sizes, dtypes, strict=True))}
    assert sharding._bundles(arrays) == [[0, 2], [1], [3], [4]]


def test_arrays_are_sent_in_pieces_bit_for_bit(monkeypatch):
    monkeypatch.setattr(sharding, "_PIECE", 16)
    tree = {
        "zeros": np.array([-0.0, 0.0, np.nan, np.inf], np.float32),
        "odd": np.array([True, False, True]),
        "matrix": np.arange(21, dtype=np.int32).reshape(3, 7),
        "bfloat16": np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 4), np.float32),
    }
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    found = sharding.broadcast(tree, like)
    for name, expected in tree.items():
        assert (found[name].shape, found[name].dtype) == (expected.shape, expected.dtype)
        assert found[name].tobytes() == expected.tobytes()


def test_a_split_array_is_gathered_on_the_host():
    layout = sharding.Layout(sharding.mesh(), "fsdp")
    tree = {"split": np.arange(4096, dtype=np.float32).reshape(64, 64), "small": np.ones(3)}
    placed = sharding.put(tree, layout.of(tree))
    found = sharding.gather(placed)
    for name, expected in tree.items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(found[name], expected)
