"""Shardings of batches and training states over the devices: a mesh with one axis, or pmap's axis.

The mesh contains the devices of all processes of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from bloodjax.errors import UserError

AXIS = "data"
LAYOUTS = ("data", "fsdp")
# Arrays with fewer elements are not split: gathering them costs more time than it saves memory.
_SMALLEST = 1024
# Most elements of arrays that are summed together. Each sum that is scattered takes some
# microseconds, however small it is; memory for more is needed at once.
_BUNDLE = 2**24
# Bytes that cross the devices at once when one process's arrays are sent to the others.
_PIECE = 2**24
# Rows of a TPU's tile of bfloat16 numbers.
_TILE_ROWS = 16


def mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns a mesh of `devices` (default: all of them) along the batch axis.

    Chips that are connected in a box come row by row.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _box(_coords(devices))
    # Auto axes, because Flax's modules do not carry shardings in their types.
    types = (AxisType.Auto,) * len(shape)
    names = tuple(f"side_{i}" for i in range(len(shape)))
    box = jax.make_mesh(shape, names, axis_types=types, devices=devices)
    return jax.sharding.Mesh(box.devices.ravel(), (AXIS,), axis_types=types[:1])


def _box(coords: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Sides of the box that chips with these coordinates fill; of a line if there is none."""
    sides = [len(set(side)) for side in zip(*coords, strict=True)]
    sides = tuple(side for side in sides if side > 1)
    return sides if len(sides) > 1 and math.prod(sides) == len(coords) else (len(coords),)


def _coords(devices: Sequence[jax.Device]) -> list[tuple[int, ...]]:
    """Coordinates of a TPU's chips; empty for other devices."""
    return [tuple(getattr(device, "coords", None) or ()) for device in devices]


def _phases(box: tuple[int, ...]) -> list[list[list[int]] | None]:
    """Groups of devices over which a sum is scattered, one phase after another.

    The compiler for TPUs makes a full sum, which sends twice the bytes, of one that is scattered
    over a box of chips at once, but not of one that is scattered along one side after the other.
    Of arrays that are gathered in a box of 8 x 8 chips at once it makes a sum too.
    """
    if len(box) == 1:
        return [None]
    index = np.arange(math.prod(box)).reshape(box)
    lines = [np.moveaxis(index, side, -1).reshape(-1, n) for side, n in enumerate(box)]
    return [line.tolist() for line in lines]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Every device has the full array."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def by_step_and_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The second axis is split over the devices; the first one counts steps."""
    return NamedSharding(mesh, PartitionSpec(None, AXIS))


class Layout:
    """Sharding of a training state on a mesh: replicated, or split over the devices.

    "data" replicates it. "fsdp" (fully sharded data parallelism, the third stage of ZeRO;
    Rajbhandari et al. 2020, arXiv:1910.02054) splits each array along its largest dimension that is
    a multiple of the number of devices. A step then gathers the parameters, and each device keeps
    only its part of the gradient, the moments and the average. The batch is split in both cases.

    Attributes:
      mesh: The devices.
      splits: Whether the state is split.
    """

    def __init__(self, mesh: jax.sharding.Mesh, name: str = "data"):
        self.mesh, self._replicated = mesh, replicated(mesh)
        self.splits = name == "fsdp" and mesh.size > 1
        self._phases = _phases(_box(_coords(mesh.devices.ravel().tolist())))

    def of(self, tree: PyTree) -> PyTree:
        """Returns a sharding for each array of `tree`; the leaves may be `jax.ShapeDtypeStruct`."""
        return jax.tree.map(lambda x: self._of_shape(np.shape(x)), tree)

    def scattered(self, tree: PyTree) -> PyTree:
        """Under jit: splits `tree` as `of` does."""
        return lax.with_sharding_constraint(tree, self.of(tree)) if self.splits else tree

    def specs(self, tree: PyTree) -> PyTree:
        """Returns the `PartitionSpec` of `of` for each array of `tree`."""
        return jax.tree.map(lambda sharding: sharding.spec, self.of(tree))

    def gather(self, tree: PyTree, specs: PyTree, dtypes: PyTree | None = None) -> PyTree:
        """Under `jax.shard_map`: the full arrays of the parts in `tree`.

        Args:
          tree: This device's parts.
          specs: What `specs` returned for the full arrays.
          dtypes: Dtypes that the arrays are rounded to, to have fewer bytes on the way.
        """

        def one(x, spec, dtype):
            axis = _split_axis(spec)
            if axis is None:
                return x
            full = x.astype(dtype)
            for groups in reversed(self._phases):
                full = lax.all_gather(full, AXIS, axis_index_groups=groups, axis=axis, tiled=True)
            return full.astype(x.dtype)

        return jax.tree.map(one, tree, specs, _dtypes(tree) if dtypes is None else dtypes)

    def reduce(self, tree: PyTree, specs: PyTree, dtypes: PyTree, wanted: PyTree) -> PyTree:
        """Under `jax.shard_map`: sums `tree` over the devices, of which each keeps its parts.

        Args:
          tree: Full arrays, other ones on each device.
          specs: What `specs` returned for these.
          dtypes: Dtypes that the arrays are rounded to, to have fewer bytes on the way.
          wanted: Whether each is summed; the others become zeros.
        """
        leaves, structure = jax.tree.flatten(tree)
        specs = structure.flatten_up_to(specs)
        axes = [_split_axis(spec) for spec in specs]
        dtypes = structure.flatten_up_to(dtypes)
        sent = [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
        wanted = structure.flatten_up_to(wanted)
        sums, split = {}, {}
        for i, (x, axis) in enumerate(zip(sent, axes, strict=True)):
            if not wanted[i]:
                sums[i] = jnp.zeros_like(self.part(x, specs[i]))
            elif axis is None:
                sums[i] = lax.psum(x, AXIS)
            else:
                split[i] = x
        for members in _bundles(split):
            parts = self._scatter([jnp.moveaxis(sent[i], axes[i], 0) for i in members])
            for i, part in zip(members, parts, strict=True):
                sums[i] = jnp.moveaxis(part, 0, axes[i])
        return structure.unflatten(sums[i].astype(leaf.dtype) for i, leaf in enumerate(leaves))

    def _scatter(self, arrays: list[Array]) -> list[Array]:
        """Sums arrays over the devices together; each device keeps its parts of their first axes.

        They are laid out as one matrix, of which each device gets the rows of a TPU's tile. The
        compiler for TPUs makes a full sum of one that is scattered along the minor axis of an
        array, or of fewer rows.
        """
        n = self.mesh.size
        flat = [x.reshape(n, -1) for x in arrays]
        ends = np.cumsum([x.shape[1] for x in flat])
        joined = jnp.concatenate(flat, axis=1)
        joined = jnp.pad(joined, ((0, 0), (0, -int(ends[-1]) % _TILE_ROWS)))
        rows = joined.reshape(n * _TILE_ROWS, -1)
        for groups in self._phases:
            rows = lax.psum_scatter(rows, AXIS, axis_index_groups=groups, tiled=True)
        parts = jnp.split(rows.reshape(-1)[: ends[-1]], ends[:-1])
        return [
            part.reshape(len(x) // n, *x.shape[1:]) for part, x in zip(parts, arrays, strict=True)
        ]

    def part(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Under `jax.shard_map`: this device's parts of full arrays that all devices have."""

        def one(x, spec):
            axis = _split_axis(spec)
            if axis is None:
                return x
            size = x.shape[axis] // self.mesh.size
            return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * size, size, axis)

        return jax.tree.map(one, tree, specs)

    def _of_shape(self, shape: tuple[int, ...]) -> NamedSharding:
        fitting = [(n, axis) for axis, n in enumerate(shape) if n % self.mesh.size == 0]
        if not (self.splits and fitting) or np.prod(shape) < _SMALLEST:
            return self._replicated
        _, axis = max(fitting)
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))


def _split_axis(spec: PartitionSpec) -> int | None:
    return spec.index(AXIS) if AXIS in spec else None


def _bundles(arrays: dict[int, Array]) -> list[list[int]]:
    """Keys of arrays that are summed together: of one dtype, in order, up to `_BUNDLE` elements."""
    bundles: list[list[int]] = []
    latest: dict[jnp.dtype, list[int]] = {}
    for key, x in arrays.items():
        bundle = latest.get(x.dtype, [])
        if not bundle or x.size + sum(arrays[other].size for other in bundle) > _BUNDLE:
            bundle = latest[x.dtype] = []
            bundles.append(bundle)
        bundle.append(key)
    return bundles


def _dtypes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.dtype, tree)


def default_shardings(tree: PyTree) -> PyTree:
    """Returns a sharding for each array of `tree` with which this process has the full array.

    That is the first device, or in a run of several processes all devices.
    """
    several = jax.process_count() > 1
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding = replicated(mesh()) if several else first
    return jax.tree.map(lambda _: sharding, tree)


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Moves `tree` to the devices.

    Args:
      tree: Arrays that every process has in full, or that are on the devices already.
      shardings: A sharding for each array, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put_one(x, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        full = np.asarray(x)
        return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: put_one(x, shardings), tree)
    return jax.tree.map(put_one, tree, shardings)


def gather(tree: PyTree) -> PyTree:
    """Returns the arrays of `tree`, in full and in the host's memory, on the primary process.

    One array at a time is in full on the devices. The other processes get None for each.
    """
    full = replicated(mesh())

    def one(x: jax.Array) -> np.ndarray | None:
        if not (x.is_fully_addressable or x.is_fully_replicated):
            x = jax.device_put(x, full)
        if jax.process_index() > 0:
            return None
        return np.array(x)  # a copy, because the device's memory is reused

    return jax.tree.map(one, tree)


def broadcast(tree: PyTree, like: PyTree) -> PyTree:
    """Returns the primary process's arrays on every process, in the host's memory, bit for bit.

    The bytes cross the devices in pieces of one size, so that one program is compiled for all
    shapes. They are summed with zeros, as whole numbers: as floats, -0 would become 0.

    Args:
      tree: The arrays, on the primary process; anything on the others.
      like: The same tree of arrays of these shapes and dtypes, or of `jax.ShapeDtypeStruct`.
    """
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(like)
    sizes = [math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves]
    ends = np.cumsum([0, *sizes]).tolist()
    data = np.zeros(-(-ends[-1] // _PIECE) * _PIECE, np.uint8)
    if jax.process_index() == 0:
        for x, start, end in zip(structure.flatten_up_to(tree), ends, ends[1:], strict=False):
            data[start:end] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE].view(np.uint32)
        piece[:] = multihost_utils.broadcast_one_to_all(piece)
    return structure.unflatten(
        data[start:end].view(x.dtype).reshape(x.shape).copy()
        for x, start, end in zip(leaves, ends, ends[1:], strict=False)
    )


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """Returns the indices of this process's examples in a batch, int [share], ascending."""
    indices = by_batch(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[index] for index in indices.values()]))


def put_rows(tree: PyTree, mesh: jax.sharding.Mesh, batch_size: int) -> PyTree:
    """Turns each process's `local_rows`, [steps, share, ...], into arrays [steps, batch, ...]."""
    if jax.process_count() == 1:
        return jax.device_put(tree, by_step_and_batch(mesh))
    rows = local_rows(mesh, batch_size)

    def put_one(x: np.ndarray) -> jax.Array:
        def part(index):
            first, last, _ = index[1].indices(batch_size)
            start = np.searchsorted(rows, first)
            return x[index[0], start : start + last - first]

        shape = (len(x), batch_size, *x.shape[2:])
        return jax.make_array_from_callback(shape, by_step_and_batch(mesh), part)

    return jax.tree.map(put_one, tree)


def per_device(batch_size: int, accumulate_steps: int = 1, *, pairs: bool = False) -> int:
    """Returns the number of examples of a batch on each device.

    Args:
      batch_size: Examples of a batch.
      accumulate_steps: Micro-batches of a batch.
      pairs: Whether examples are mixed in pairs, which must be on one device.

    Raises:
      UserError: The batch cannot be divided evenly among devices and micro-batches, or not into
        pairs.
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
            "devices with mixup, cutmix, fourier or mixstyle"
        )
    return batch_size // devices


def stack(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Copies `tree` to each device, along a new first axis that pmap maps over."""

    def copies(x):
        return jax.device_put(np.broadcast_to(x, (mesh.size, *np.shape(x))), by_batch(mesh))

    return jax.tree.map(copies, tree)


def split(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Splits arrays [steps, batch, ...] into [devices, steps, share, ...] for pmap."""

    def shares(x):
        apart = x.reshape(len(x), mesh.size, -1, *x.shape[2:])
        return jax.device_put(np.moveaxis(apart, 1, 0), by_batch(mesh))

    return jax.tree.map(shares, tree)


def unstack(tree: PyTree) -> PyTree:
    """Returns the first device's copy of each array that `stack` made, or that pmap returned.

    The copy stays on that device. Indexing the full array would need a collective per array; with
    fewer cores than devices, many collectives at once can deadlock.
    """
    return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)
