"""Tests of ops/devices.py, on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from bloodjax.ops import devices


def test_a_shard_map_gives_each_device_its_own_part():
    found = []

    def look(x):
        found.append(devices.on_one_device())
        return x

    x = jnp.zeros(8)
    jax.make_jaxpr(look)(x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    jax.make_jaxpr(jax.shard_map(look, mesh=mesh, in_specs=split, out_specs=split))(x)
    assert found == [False, True]
