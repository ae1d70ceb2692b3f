"""Every network by name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.models.convnext import SIZES, ConvNeXt
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN

_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    f"convnext_{size}": functools.partial(ConvNeXt, depths=depths, widths=widths)
    for size, (depths, widths) in SIZES.items()
}
_BACKBONES["simple_cnn"] = SimpleCNN


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_BACKBONES)


def build(
    name: str,
    num_classes: int,
    *,
    drop_path: float = 0.0,
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    **head,
) -> Network:
    """Builds a network by name.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      drop_path: stochastic depth's rate at the last block.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters and logits are float32.
      **head: fields of `models.head.Head`, such as `hidden` and `dropout`.

    Raises:
      UserError: `name` is not known.
    """
    if name not in _BACKBONES:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names())}"
        raise UserError(f"unknown model {name!r}: {hint}")
    backbone = _BACKBONES[name](drop_path=drop_path, axis_name=axis_name, dtype=dtype)
    return Network(backbone, Head(num_classes, axis_name=axis_name, dtype=dtype, **head))


def create_model(
    name: str, weights: str | None = None, num_classes: int = 1000
) -> tuple[Network, PyTree]:
    """A network with a linear head, and its variables: `model.apply(variables, x, train=False)`.

    Args:
      name: one of `names()`.
      weights: None for random weights, the same ones every time; this version reads no others.
      num_classes: number of logits.

    Returns:
      The module, and `{"params": ..., "batch_stats": ...}`. It maps normalised float32 images
      [batch, height, width, 3] to logits [batch, num_classes].

    Raises:
      UserError: `name` is not known, or `weights` are given.
    """
    if weights is not None:
        raise UserError(
            f"weights={weights!r}: this version starts from random weights, weights=None"
        )
    model = build(name, num_classes, hidden=(), batch_norm=False, dropout=(0.0, 0.0))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 96, 96, 3), jnp.float32))
    return model, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
