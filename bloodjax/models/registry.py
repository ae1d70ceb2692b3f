"""Every network by name."""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from bloodjax.errors import UserError
from bloodjax.models import (
    convnext,
    densenet,
    efficientnet,
    inception,
    mobilenet,
    resnet,
    simple_cnn,
    vgg,
)
from bloodjax.models.head import Head, Network

# Each family's module defines NETWORKS, the attributes of each network by name; FLAVOURS, what each
# source's weights change of them, the first being the default; and SMALLEST, in pixels a side.
_FAMILIES = (
    (mobilenet, mobilenet.MobileNet),
    (inception, inception.InceptionV3),
    (vgg, vgg.VGG),
    (resnet, resnet.ResNet),
    (densenet, densenet.DenseNet),
    (convnext, convnext.ConvNeXt),
    (efficientnet, efficientnet.EfficientNet),
    (simple_cnn, simple_cnn.SimpleCNN),
)
_FAMILY = {name: family for family in _FAMILIES for name in family[0].NETWORKS}


def names() -> list[str]:
    """The names that `factory` knows, sorted."""
    return sorted(_FAMILY)


def family(name: str) -> str:
    """The family of a network: the name of its module, such as "efficientnet".

    Raises:
      UserError: `name` is not known.
    """
    if name not in _FAMILY:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names())}"
        raise UserError(f"unknown model {name!r}: {hint}")
    return _FAMILY[name][0].__name__.rpartition(".")[2]


def flavours(name: str) -> tuple[str, ...]:
    """The flavours that a network comes in, the default first."""
    family(name)
    return tuple(_FAMILY[name][0].FLAVOURS)


def smallest(name: str) -> int:
    """Pixels a side of the smallest images that a network can take."""
    family(name)
    return _FAMILY[name][0].SMALLEST


def build(
    name: str,
    num_classes: int,
    *,
    flavour: str = "",
    top: bool = False,
    drop_path: float = 0.0,
    remat: bool = False,
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    **head,
) -> Network:
    """Builds a network by name.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      flavour: one of `flavours(name)`: whose padding, epsilons and activations; the default where
        it is empty.
      top: keep the dense layers that some backbones (VGG) have between features and classifier.
      drop_path: stochastic depth's rate at the last block.
      remat: compute what lies within each of the backbone's blocks anew in the backward pass, in
        place of keeping it.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters and logits are float32.
      **head: fields of `models.head.Head`, such as `hidden` and `dropout`.

    Raises:
      UserError: `name` or `flavour` is not known.
    """
    known = flavours(name)
    if flavour and flavour not in known:
        raise UserError(f"{name} has no flavour {flavour!r}: expected one of {', '.join(known)}")
    module, backbone = _FAMILY[name]
    attributes = module.NETWORKS[name] | module.FLAVOURS[flavour or known[0]]
    if top and hasattr(backbone, "top"):
        attributes = attributes | {"top": True}
    return Network(
        backbone(**attributes, drop_path=drop_path, remat=remat, axis_name=axis_name, dtype=dtype),
        Head(num_classes, axis_name=axis_name, dtype=dtype, **head),
    )


def linear(name: str, num_classes: int = 1000, *, flavour: str = "", top: bool = False) -> Network:
    """The network as published: with a linear classifier and nothing else in its head.

    The arguments are `factory`'s.

    Raises:
      UserError: `name` or `flavour` is not known.
    """
    return build(
        name,
        num_classes,
        flavour=flavour,
        top=top,
        hidden=(),
        batch_norm=False,
        dropout=(0.0, 0.0),
    )


def create_model(
    name: str, num_classes: int = 1000, *, flavour: str = "", top: bool = False
) -> tuple[Network, PyTree]:
    """A network with a linear head, and random variables, the same ones every time.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      flavour: as in `factory`.
      top: as in `factory`.

    Returns:
      The module, and `{"params": ..., "batch_stats": ...}`. It maps normalised float32 images
      [batch, height, width, 3] to logits [batch, num_classes].

    Raises:
      UserError: `name` or `flavour` is not known.
    """
    model = linear(name, num_classes, flavour=flavour, top=top)
    return model, draw(model)


def draw(
    model: Network, size: int = 96, seed: int = 0, given: PyTree | None = None
) -> dict[str, PyTree]:
    """A network's random variables; what is at hand already is not drawn, but taken.

    To compile what draws a deep network takes seconds, and more than its first steps take.

    Args:
      model: the network.
      size: side of its images in pixels.
      seed: the same one gives the same variables, whichever of them are `given`.
      given: whole modules by collection and name: `{"params": {"backbone": ...}, ...}`.

    Returns:
      `{"params": ..., "batch_stats": ...}`.
    """
    given = {name: (given or {}).get(name, {}) for name in ("params", "batch_stats")}

    @jax.jit
    def rest() -> dict[str, PyTree]:
        drawn = model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3), jnp.float32))
        return {
            name: {k: module for k, module in drawn.get(name, {}).items() if k not in modules}
            for name, modules in given.items()
        }

    return {name: modules | given[name] for name, modules in rest().items()}


def stages(model: Network, variables: PyTree, x: Float[Array, "b h w 3"]) -> list[Array]:
    """The backbone's map at the end of each stage, the largest first.

    Args:
      model: from `factory` or `create_model`.
      variables: the network's.
      x: normalised images.

    Returns:
      Arrays [b, h_i, w_i, c_i] in the network's dtype. Under `jax.jit` the head is not computed.
    """
    _, seen = model.apply(variables, x, train=False, mutable=["intermediates"])
    maps = seen["intermediates"]["backbone"]
    return [maps[f"stage_{i}"][0] for i in range(len(maps))]
