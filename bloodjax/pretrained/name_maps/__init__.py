"""Tables of name rules, one module a family: which tensor of a source is which of our variables.

A module defines `RULES: dict[str, Table]`, by the source's naming ("timm", "torchvision", "keras",
...). A table is a tuple of `Rule`; the first whose pattern matches a tensor's whole name decides.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable

import numpy as np

from bloodjax.errors import UserError

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    # PyTorch's layouts into ours.
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW -> HWIO
    "depthwise": lambda x: x[:, 0].transpose(1, 2, 0),  # [c, 1, h, w] -> [h, w, c]
    "dense": lambda x: x.reshape(x.shape[:2]).T,  # [out, in] or a 1x1 convolution -> [in, out]
    "flat": lambda x: x.reshape(-1),  # [c, 1, 1] -> [c]
    # VGG's first dense layer, flat or as a 7x7 convolution: rows in order (c, h, w) -> (h, w, c)
    "vgg_fc": lambda x: x.reshape(len(x), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(x)),
    # Keras's layouts into ours.
    "keras_depthwise": lambda x: x[..., 0],  # [h, w, c, 1] -> [h, w, c]
    "keras_grouped": lambda x: x[:, :, 0],  # [h, w, 1, c] -> [h, w, c]
    "keras_conv_as_dense": lambda x: x[0, 0],  # a 1x1 convolution -> [in, out]
    "keras_conv_bgr": lambda x: x[:, :, ::-1],  # takes BGR images -> takes RGB ones
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where the tensors of one kind go.

    Attributes:
      pattern: a regular expression for the tensor's whole name.
      target: our variable's path, such as "params/backbone/stem/kernel"; a template that
        `re.Match.expand` fills, or a function of the match; None for a tensor that we do not need.
      transform: a key of `TRANSFORMS`.
    """

    pattern: str
    target: str | Callable[[re.Match[str]], str] | None
    transform: str = ""


Table = tuple[Rule, ...]

Target = str | Callable[[re.Match[str]], str]


def _under(collection: str, module: Target, leaf: str) -> Target:
    if callable(module):
        return lambda match: f"{collection}/{module(match)}/{leaf}"
    return f"{collection}/{module}/{leaf}"


def kernel(pattern: str, module: Target, transform: str = "conv") -> Table:
    """PyTorch's `pattern`.weight and, where there is one, `pattern`.bias of our `module`.

    Args:
      pattern: a regular expression for the module's name at the source.
      module: ours, such as r"backbone/stage_\\1", a template or a function of the match.
      transform: of the kernel.
    """
    return (
        Rule(rf"{pattern}\.weight", _under("params", module, "kernel"), transform),
        Rule(rf"{pattern}\.bias", _under("params", module, "bias")),
    )


def layer_norm(pattern: str, module: Target) -> Table:
    """PyTorch's LayerNorm `pattern` as our `module`."""
    return (
        Rule(rf"{pattern}\.weight", _under("params", module, "scale")),
        Rule(rf"{pattern}\.bias", _under("params", module, "bias")),
    )


def batch_norm(pattern: str, module: Target) -> Table:
    """PyTorch's BatchNorm `pattern` as our `module`, running statistics included."""
    return (
        *layer_norm(pattern, module),
        Rule(rf"{pattern}\.running_mean", _under("batch_stats", module, "mean")),
        Rule(rf"{pattern}\.running_var", _under("batch_stats", module, "var")),
        Rule(rf"{pattern}\.num_batches_tracked", None),
    )


def keras_kernel(pattern: str, module: Target, transform: str = "") -> Table:
    """Keras's `pattern`/kernel and `pattern`/bias (see `keras_file`) as our `module`."""
    return (
        Rule(f"{pattern}/kernel", _under("params", module, "kernel"), transform),
        Rule(f"{pattern}/bias", _under("params", module, "bias")),
    )


def keras_norm(pattern: str, module: Target) -> Table:
    """Keras's BatchNormalization or LayerNormalization `pattern` as our `module`."""
    return (
        Rule(f"{pattern}/gamma", _under("params", module, "scale")),
        Rule(f"{pattern}/beta", _under("params", module, "bias")),
        Rule(f"{pattern}/moving_mean", _under("batch_stats", module, "mean")),
        Rule(f"{pattern}/moving_variance", _under("batch_stats", module, "var")),
    )


# Our own files, of every family: a tensor's name is its path.
_OWN = {"bloodjax": (Rule("(.*)", r"\1"),)}


def table(family: str, rules: str, name: str) -> Table:
    """The table for the tensors of network `name`, as the source that `validation` names calls them.

    Raises:
      UserError: the family has no such rules.
    """
    known = _rules(family) | _OWN
    if rules not in known:
        raise UserError(f"no rules {rules!r} for {name}: expected one of {', '.join(known)}")
    return known[rules](name) if callable(known[rules]) else known[rules]


def names(family: str) -> list[str]:
    """The namings that a family has rules of its own for."""
    return list(_rules(family))


def _rules(family: str) -> dict[str, Table | Callable[[str], Table]]:
    if importlib.util.find_spec(f"{__name__}.{family}") is None:
        return {}  # a network that only we have
    return importlib.import_module(f"{__name__}.{family}").RULES


def target(tensor: str, table: Table) -> tuple[str | None, str]:
    """Our path of the tensor of that name, and its transform.

    The path is None for a tensor that is not needed, and "" for one that no rule knows.
    """
    for rule in table:
        match = re.fullmatch(rule.pattern, tensor)
        if match:
            if rule.target is None:
                return None, ""
            path = rule.target(match) if callable(rule.target) else match.expand(rule.target)
            return path, rule.transform
    return "", ""
