"""Primitives for operations that Mosaic compiles for a TPU.

Only a TPU lowers such a primitive, so that other platforms do not trace the kernels. XLA cannot
divide a kernel among devices: of several devices, each uses the kernels on its own images inside
`jax.shard_map`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

SUBLANES = 16  # rows of a register in bfloat16


def primitive(
    name: str,
    lowered: Callable[..., Sequence[Any]],
    shapes: Callable[..., Sequence[Any]],
    joined: Callable[..., Sequence[Any] | None] = lambda *_, **__: None,
) -> Primitive:
    """Returns a primitive with several results.

    Args:
      name: its name.
      lowered: computes the results on a TPU from the operands and the keyword parameters.
      shapes: the abstract results from the abstract operands and the parameters.
      joined: computes all calls of a vmap at once, from the operands and the axes along which they
        are mapped, or gives None where it cannot. The results are mapped along axis 0. Without it,
        a vmap is one call after another.
    """
    result = Primitive(name)
    result.multiple_results = True

    def batched(operands, axes, **parameters):
        results = joined(operands, axes, **parameters)
        if results is not None:
            return results, [0] * len(results)
        pairs = list(zip(operands, axes, strict=True))
        size = next(a.shape[axis] for a, axis in pairs if axis is not None)
        moved = tuple(
            jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in pairs
        )
        results = lax.map(lambda each: result.bind(*each, **parameters), moved)
        return results, [0] * len(results)

    def run(*operands, **parameters):
        return jax.jit(functools.partial(result.bind, **parameters))(*operands)

    result.def_impl(run)
    result.def_abstract_eval(shapes)
    mlir.register_lowering(
        result,
        mlir.lower_fun(lambda *a, **k: list(lowered(*a, **k)), multiple_results=True),
        platform="tpu",
    )
    batching.primitive_batchers[result] = batched
    return result


def block_rows(rows: int, batch: int, most: int) -> int:
    """Rows that one program of a kernel computes; 0 if there is no suitable number.

    Args:
      rows: pixels of a map times `batch`.
      batch: number of images, which are the inner dimension of the rows.
      most: largest number of rows.
    """
    return max(
        (
            size
            for size in range(SUBLANES, min(rows, most) + 1, SUBLANES)
            if rows % size == 0 and (size % batch == 0 or batch % size == 0)
        ),
        default=0,
    )
