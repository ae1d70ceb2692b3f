"""How arrays lie on the devices: one mesh with a batch axis, or pmap's leading axis.

The mesh holds the devices of all of a run's processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bloodjax.errors import UserError

AXIS = "data"
LAYOUTS = ("data", "fsdp")
# Elements of the smallest array that is split: to gather smaller ones takes longer than they save.
_SMALLEST = 1024


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


class Layout:
    """How a training state lies on a mesh: whole on each device, or split over all of them.

    "data" keeps it whole. "fsdp" (fully sharded data parallelism; Rajbhandari et al. 2020,
    "ZeRO", arXiv:1910.02054, its third stage) splits each array along its largest dimension that
    the number of devices divides; a step gathers the parameters, and keeps of their gradient, the
    moments and the average each device's part alone. The batch is split either way.

    Attributes:
      splits: whether it does.
    """

    def __init__(self, mesh: jax.sharding.Mesh, name: str = "data"):
        self._mesh, self._whole = mesh, replicated(mesh)
        self.splits = name == "fsdp" and mesh.size > 1

    def of(self, tree: PyTree) -> PyTree:
        """A sharding for each array of `tree`, which may be of shapes and dtypes only."""
        return jax.tree.map(lambda x: self._of_shape(np.shape(x)), tree)

    def gathered(self, tree: PyTree) -> PyTree:
        """Under jit: `tree` whole on each device."""
        return lax.with_sharding_constraint(tree, self._whole) if self.splits else tree

    def scattered(self, tree: PyTree) -> PyTree:
        """Under jit: `tree` as `of` says."""
        return lax.with_sharding_constraint(tree, self.of(tree)) if self.splits else tree

    def _of_shape(self, shape: tuple[int, ...]) -> NamedSharding:
        fitting = [(n, axis) for axis, n in enumerate(shape) if n % self._mesh.size == 0]
        if not (self.splits and fitting) or np.prod(shape) < _SMALLEST:
            return self._whole
        _, axis = max(fitting)
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, AXIS))


def simplest(tree: PyTree) -> PyTree:
    """A sharding for each array of `tree`: one device, or all where they are of several processes.

    Either way this process has all of it.
    """
    several = jax.process_count() > 1
    place = replicated(mesh()) if several else jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: place, tree)


def put(tree: PyTree, places: PyTree) -> PyTree:
    """`tree` on the devices.

    Args:
      tree: arrays that each process has in full, or that lie on the devices already.
      places: a sharding for each, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def one(x, place: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, place)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda x: one(x, places), tree)
    return jax.tree.map(one, tree, places)


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """Which examples of a batch this process's devices take, int [share], ascending."""
    indices = by_batch(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[index] for index in indices.values()]))


def put_rows(tree: PyTree, mesh: jax.sharding.Mesh, batch_size: int) -> PyTree:
    """Arrays [steps, share, ...] of the `local_rows` as [steps, batch, ...] on all devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, by_step_and_batch(mesh))
    rows = local_rows(mesh, batch_size)

    def one(x: np.ndarray) -> jax.Array:
        def part(index):
            first, last, _ = index[1].indices(batch_size)
            start = np.searchsorted(rows, first)
            return x[index[0], start : start + last - first]

        shape = (len(x), batch_size, *x.shape[2:])
        return jax.make_array_from_callback(shape, by_step_and_batch(mesh), part)

    return jax.tree.map(one, tree)


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
    """The first device's copy of each array that `stack` made, or that pmap returned.

    It stays on that device. To index the whole array would have all devices meet, once for each
    array; with fewer cores than devices, many such meetings at once may wait for each other.
    """
    return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)
