"""Name maps, one module per family: which tensor of a file is which of our variables.

A family's module defines `NAME_MAPS`: naming convention ("timm", "torchvision", "keras", ...) ->
name map, or a function that makes one for an `Architecture`. A name map is a tuple of `Rule`; the
first rule whose pattern matches a tensor's full name applies.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable

import numpy as np

from bloodjax.errors import UserError
from bloodjax.models.registry import Architecture

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    # From PyTorch's layout.
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW -> HWIO
    "depthwise": lambda x: x.squeeze(1).transpose(1, 2, 0),  # [c, 1, h, w] -> [h, w, c]
    "dense": lambda x: x.reshape(x.shape[:2]).T,  # [out, in] or a 1x1 convolution -> [in, out]
    "flat": lambda x: x.reshape(-1),  # [c, 1, 1] -> [c]
    # VGG's first dense layer, flat or as a 7x7 convolution: rows in order (c, h, w) -> (h, w, c)
    "vgg_fc": lambda x: x.reshape(len(x), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(x)),
    # From Keras's layout.
    "keras_depthwise": lambda x: x.squeeze(-1),  # [h, w, c, 1] -> [h, w, c]
    "keras_grouped": lambda x: x.squeeze(2),  # [h, w, 1, c] -> [h, w, c]
    "keras_conv_as_dense": lambda x: x.squeeze((0, 1)),  # a 1x1 convolution -> [in, out]
    "keras_conv_bgr": lambda x: x[:, :, ::-1],  # first layer for BGR images -> for RGB images
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Maps the tensors whose names match a pattern.

    Attributes:
      pattern: regular expression that matches a tensor's full name.
      target: path of our variable, such as "params/backbone/stem/kernel": a template for
        `re.Match.expand`, or a function of the match. None ignores the tensor.
      transform: a key of `TRANSFORMS`.
    """

    pattern: str
    target: str | Callable[[re.Match[str]], str] | None
    transform: str = ""


NameMap = tuple[Rule, ...]

# A module of ours: a template for `re.Match.expand`, or a function of the match.
Target = str | Callable[[re.Match[str]], str]


def _under(collection: str, module: Target, leaf: str) -> Target:
    if callable(module):
        return lambda match: f"{collection}/{module(match)}/{leaf}"
    return f"{collection}/{module}/{leaf}"


def kernel(pattern: str, module: Target, transform: str = "conv") -> NameMap:
    """Maps PyTorch's `pattern`.weight and, if there is one, `pattern`.bias.

    Args:
      pattern: regular expression for the module's name in the file.
      module: our module, such as r"backbone/stage_\\1".
      transform: transform of the kernel, a key of `TRANSFORMS`.
    """
    return (
        Rule(rf"{pattern}\.weight", _under("params", module, "kernel"), transform),
        Rule(rf"{pattern}\.bias", _under("params", module, "bias")),
    )


def layer_norm(pattern: str, module: Target) -> NameMap:
    """Maps PyTorch's LayerNorm `pattern` to our `module`."""
    return (
        Rule(rf"{pattern}\.weight", _under("params", module, "scale")),
        Rule(rf"{pattern}\.bias", _under("params", module, "bias")),
    )


def batch_norm(pattern: str, module: Target) -> NameMap:
    """Maps PyTorch's BatchNorm `pattern` to our `module`, including running statistics."""
    return (
        *layer_norm(pattern, module),
        Rule(rf"{pattern}\.running_mean", _under("batch_stats", module, "mean")),
        Rule(rf"{pattern}\.running_var", _under("batch_stats", module, "var")),
        Rule(rf"{pattern}\.num_batches_tracked", None),
    )


def keras_kernel(pattern: str, module: Target, transform: str = "") -> NameMap:
    """Maps Keras's `pattern`/kernel and `pattern`/bias (see `keras_file`) to our `module`."""
    return (
        Rule(f"{pattern}/kernel", _under("params", module, "kernel"), transform),
        Rule(f"{pattern}/bias", _under("params", module, "bias")),
    )


def keras_norm(pattern: str, module: Target) -> NameMap:
    """Maps Keras's BatchNormalization or LayerNormalization `pattern` to our `module`."""
    return (
        Rule(f"{pattern}/gamma", _under("params", module, "scale")),
        Rule(f"{pattern}/beta", _under("params", module, "bias")),
        Rule(f"{pattern}/moving_mean", _under("batch_stats", module, "mean")),
        Rule(f"{pattern}/moving_variance", _under("batch_stats", module, "var")),
    )


# bloodjax's own files, of every family: a tensor's name is its path.
_BLOODJAX = {"bloodjax": (Rule("(.*)", r"\1"),)}


def name_map(architecture: Architecture, naming: str) -> NameMap:
    """Returns the name map of a network for a naming convention.

    Raises:
      UserError: the family has no name map for `naming`.
    """
    known = _family_maps(architecture.family) | _BLOODJAX
    if naming not in known:
        raise UserError(
            f"no name map {naming!r} for {architecture.name}: expected one of {', '.join(known)}"
        )
    return known[naming](architecture) if callable(known[naming]) else known[naming]


def namings(family: str) -> list[str]:
    """Returns the naming conventions that a family has name maps for, other than bloodjax's."""
    return list(_family_maps(family))


def _family_maps(family: str) -> dict[str, NameMap | Callable[[Architecture], NameMap]]:
    if importlib.util.find_spec(f"{__name__}.{family}") is None:
        return {}  # a network of bloodjax's own, such as simple_cnn
    return importlib.import_module(f"{__name__}.{family}").NAME_MAPS


def map_name(tensor: str, name_map: NameMap) -> tuple[str | None, str]:
    """Returns the path of our variable for a tensor's name, and the transform.

    The path is None for a tensor to ignore, and "" for one that no rule matches.
    """
    for rule in name_map:
        match = re.fullmatch(rule.pattern, tensor)
        if match:
            if rule.target is None:
                return None, ""
            path = rule.target(match) if callable(rule.target) else match.expand(rule.target)
            return path, rule.transform
    return "", ""
