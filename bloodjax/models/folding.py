"""BatchNorm folded into the convolution before it, for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bloodjax.models.head import Network
from bloodjax.models.layers import Conv, DepthwiseConv
from bloodjax.models.norms import BatchNorm

Path = tuple[str, ...]


def fold(model: Network, variables: PyTree, size: int) -> PyTree:
    """The variables of a network for inference, without BatchNorm's statistics.

    A BatchNorm in inference mode multiplies each channel by a factor and adds an offset. If its
    input is the output of a convolution, the kernel is multiplied by the factor here, and only the
    offset is left to the norm. Elsewhere the norm keeps the factor, too. A network applies such
    variables as it does its own (see `norms.BatchNorm.folded`), with the same results up to
    rounding. They cannot be trained.

    Args:
      model: The network.
      variables: Its variables.
      size: Side of its images in pixels.

    Returns:
      The folded variables, on the host where they differ from `variables`.
    """
    if not variables.get("batch_stats"):
        return variables
    params = _copied(variables["params"])
    for path, epsilon, conv in _norms(model, variables, size):
        norm, stats = _at(params, path), _at(variables["batch_stats"], path)
        given = {name: np.asarray(a, np.float64) for name, a in {**norm, **stats}.items()}
        factor = given.get("scale", 1.0) / np.sqrt(given["var"] + epsilon)
        offset = given["bias"] - given["mean"] * factor
        norm.clear()
        norm["offset"] = offset.astype(np.float32)
        if conv is None:
            norm["factor"] = factor.astype(np.float32)
        else:
            before = _at(params, conv)
            for name in before:
                before[name] = (np.asarray(before[name], np.float64) * factor).astype(np.float32)
    return {"params": params}


def _norms(model: Network, variables: PyTree, size: int) -> list[tuple[Path, float, Path | None]]:
    """Path and epsilon of each BatchNorm, and the path of the convolution that is its input."""
    outputs: list[tuple[object, Path]] = []
    found: list[tuple[Path, float, Path | None]] = []

    def observe(call, args, kwargs, context):
        module = context.module
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module, (Conv, DepthwiseConv, nn.Conv)):
            outputs.append((result, module.path))
        elif context.method_name == "__call__" and isinstance(module, BatchNorm):
            convs = [path for output, path in outputs if output is args[0]]
            found.append((module.path, module.epsilon, convs[0] if convs else None))
        return result

    # In float32, networks apply a norm to the convolution's output, as `observe` expects.
    plain = {"dtype": jnp.float32}
    model = model.clone(backbone=model.backbone.clone(**plain), head=model.head.clone(**plain))
    with nn.intercept_methods(observe):
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        jax.eval_shape(model.apply, variables, image)
    return found


def _copied(tree: Any) -> Any:
    return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _at(tree: PyTree, path: Path) -> dict[str, Any]:
    for name in path:
        tree = tree[name]
    return tree
