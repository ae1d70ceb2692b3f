"""Strict merge of a file's tensors into a network's variables.

As in big_vision's `merge_params`, any missing, unexpected or misshapen tensor is an error, which
lists them; so is one with values that are not finite, which a network may turn into plausible
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.pretrained.name_maps import TRANSFORMS, NameMap, map_name

# An error lists at most this many tensors of each category.
_LISTED = 4


def merge(
    tensors: Mapping[str, np.ndarray],
    name_map: NameMap,
    variables: PyTree,
    *,
    location: str,
    replace: tuple[str, ...] = (),
) -> PyTree:
    """Returns a network's variables with the values of the tensors.

    Args:
      tensors: arrays by their names in the file.
      name_map: maps these names to our variables.
      variables: `{"params": ..., "batch_stats": ...}` of arrays or shapes.
      location: location of the weights, for errors.
      replace: modules, such as "head" or "backbone/top_0", whose variables are kept. Tensors of
        these modules are ignored and may be missing.

    Returns:
      The merged variables, in float32 whatever the tensors' dtype.

    Raises:
      UserError: tensors are missing, unexpected, of another shape or not finite, or two map to one
        variable.
    """
    ours = flax.traverse_util.flatten_dict(variables, sep="/")
    kept = {path for path in ours if _under(path, replace)}
    merged, unexpected, misshapen, broken = {}, [], [], []
    for name, tensor in tensors.items():
        path, transform = map_name(name, name_map)
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
                if not np.isfinite(merged[path]).all():
                    broken.append(name)
    missing = [p for p in ours if p not in merged and p not in kept]
    missing = [p for p in missing if not any(p in m for m in misshapen)]
    problems = [
        _list("missing", missing),
        _list("unexpected", unexpected),
        _list("of another shape", misshapen),
        _list("not finite", broken),
    ]
    if any(problems):
        raise UserError(
            f"{location}: these are not the network's weights: {'; '.join(filter(None, problems))}"
        )
    kept_values = {path: ours[path] for path in kept}
    result = flax.traverse_util.unflatten_dict(merged | kept_values, sep="/")
    return {"params": result.get("params", {}), "batch_stats": result.get("batch_stats", {})}


def flatten(variables: PyTree) -> dict[str, np.ndarray]:
    """Returns variables as NumPy arrays by path, such as "params/backbone/stem/kernel"."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    return {path: np.asarray(value) for path, value in flat.items()}


def _under(path: str, modules: tuple[str, ...]) -> bool:
    inner = path.partition("/")[2]
    return any(inner == module or inner.startswith(f"{module}/") for module in modules)


def _transformed(tensor: np.ndarray, transform: str) -> np.ndarray | None:
    try:
        return TRANSFORMS[transform](np.asarray(tensor))
    except (IndexError, ValueError):
        return None  # the number of axes is wrong


def _list(problem: str, found: list[str]) -> str:
    if not found:
        return ""
    found = sorted(found)  # the order in the file is arbitrary
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{len(found)} {problem} ({', '.join(found[:_LISTED])}{more})"
