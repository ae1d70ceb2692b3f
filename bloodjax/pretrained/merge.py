"""The strict merge of a source's tensors into a network's variables.

In the manner of big_vision's `merge_params`: whatever is missing, unexpected or misshapen is
listed, and then nothing is merged at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.pretrained.name_maps import TRANSFORMS, Table, target

# Of each kind of difference, this many are named.
_NAMED = 4


def merge(
    tensors: Mapping[str, np.ndarray],
    table: Table,
    variables: PyTree,
    *,
    source: str,
    replace: tuple[str, ...] = (),
) -> PyTree:
    """`variables` with the source's tensors in place of its own.

    Args:
      tensors: arrays by the source's names.
      table: the rules that name ours.
      variables: `{"params": ..., "batch_stats": ...}` of arrays or of shapes.
      source: what errors call the weights.
      replace: paths such as "head" whose variables are kept as they are: the source's tensors
        for them are left out, and they need none. Each is compared with the part of a path that
        follows "params/" or "batch_stats/".

    Returns:
      The merged variables; float32, whatever the source's precision.

    Raises:
      UserError: tensors are missing, unexpected or of another shape, or two are for one variable.
    """
    ours = flax.traverse_util.flatten_dict(variables, sep="/")
    kept = {path for path in ours if _under(path, replace)}
    merged, unexpected, misshapen = {}, [], []
    for name, tensor in tensors.items():
        path, transform = target(name, table)
        if path == "":
            unexpected.append(name)
        elif path is None or _under(path, replace):
            continue
        elif path not in ours or path in merged:
            unexpected.append(name)
        else:
            value = _transformed(tensor, transform)
            if value is None or value.shape != ours[path].shape:
                misshapen.append(f"{name} {tuple(tensor.shape)} for {path} {ours[path].shape}")
            else:
                merged[path] = np.ascontiguousarray(value, np.float32)
    missing = [p for p in ours if p not in merged and p not in kept]
    missing = [p for p in missing if not any(p in m for m in misshapen)]
    problems = [
        _list("missing", missing),
        _list("unexpected", unexpected),
        _list("of another shape", misshapen),
    ]
    if any(problems):
        raise UserError(
            f"{source}: these are not the network's weights: {'; '.join(filter(None, problems))}"
        )
    kept_values = {path: ours[path] for path in kept}
    whole = flax.traverse_util.unflatten_dict(merged | kept_values, sep="/")
    return {"params": whole.get("params", {}), "batch_stats": whole.get("batch_stats", {})}


def flatten(variables: PyTree) -> dict[str, np.ndarray]:
    """Host arrays by path, such as "params/backbone/stem/kernel"."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    return {path: np.asarray(value) for path, value in flat.items()}


def _under(path: str, modules: tuple[str, ...]) -> bool:
    inner = path.partition("/")[2]
    return any(inner == module or inner.startswith(f"{module}/") for module in modules)


def _transformed(tensor: np.ndarray, transform: str) -> np.ndarray | None:
    try:
        return TRANSFORMS[transform](np.asarray(tensor))
    except (IndexError, ValueError):
        return None  # not even the number of axes fits


def _list(kind: str, found: list[str]) -> str:
    if not found:
        return ""
    found = sorted(found)  # a file's own order is no one's concern, and may change
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{len(found)} {kind} ({', '.join(found[:_NAMED])}{more})"
