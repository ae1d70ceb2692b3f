"""How arrays lie on the devices: one mesh with a batch axis, or pmap's leading axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bloodjax.errors import UserError

AXIS = "data"


def mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The devices, by default all, along the batch axis."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: flax's modules do not carry shardings in their types.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def by_step_and_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The second axis split over the devices; the first is of steps."""
    return NamedSharding(mesh, PartitionSpec(None, AXIS))


def per_device(batch_size: int, accumulate_steps: int = 1, *, pairs: bool = False) -> int:
    """Examples of a batch on each device.

    Raises:
      UserError: they, or those of one of `accumulate_steps` micro-batches, do not come out even;
        or with `pairs` of examples that must lie together, a device has half of one.
    """
    devices = jax.device_count()
    if batch_size % (devices * accumulate_steps):
        times = f" times the {accumulate_steps} accumulate_steps" if accumulate_steps > 1 else ""
        raise UserError(
            f"config.batch_size is {batch_size}, expected a multiple of the {devices} devices"
            f"{times}"
        )
    if pairs and batch_size // devices % 2:
        raise UserError(
            f"config.batch_size is {batch_size}, expected an even number on each of the {devices} "
            "devices with mixup or cutmix"
        )
    return batch_size // devices


def stack(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """A copy of `tree` for each device, along the new leading axis that pmap maps over."""

    def copies(x):
        return jax.device_put(np.broadcast_to(x, (mesh.size, *np.shape(x))), by_batch(mesh))

    return jax.tree.map(copies, tree)


def split(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Arrays [steps, batch, ...] as pmap maps over them: [devices, steps, share, ...]."""

    def shares(x):
        apart = x.reshape(len(x), mesh.size, -1, *x.shape[2:])
        return jax.device_put(np.moveaxis(apart, 1, 0), by_batch(mesh))

    return jax.tree.map(shares, tree)


def unstack(tree: PyTree) -> PyTree:
    """The first device's copy of each array that `stack` made, or that pmap returned."""
    return jax.tree.map(lambda x: x[0], tree)
