"""How many devices share what is being traced."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def on_one_device() -> bool:
    """Whether one device has the traced arrays: its part in a shard_map, or those of all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return all(kind == AxisType.Manual or mesh.shape[name] == 1 for name, kind in axes)
