"""Name rules of Inception-v3.

Keras leaves the layers to its automatic names: "conv2d", "conv2d_1", ... in the order in which
they were made, which is that of `models.inception`'s tables. A network that is built first in its
process starts at "conv2d" ("keras"). Early versions of Keras counted from 1 instead, "conv2d_1"
being the first ("keras_from_1"). Nothing in a single name tells the two apart.
"""

from __future__ import annotations

import re

from bloodjax.models.inception import BLOCKS, STEMS, Unit
from bloodjax.pretrained.name_maps import Rule, Table, batch_norm, keras_kernel, keras_norm, kernel

_TORCH: Table = (
    *kernel(r"Conv2d_(\d[a-z])_\dx\d\.conv", r"backbone/stem_\1"),
    *batch_norm(r"Conv2d_(\d[a-z])_\dx\d\.bn", r"backbone/stem_\1_norm"),
    *kernel(r"Mixed_(\d[a-z])\.(branch\w+)\.conv", r"backbone/mixed_\1/\2"),
    *batch_norm(r"Mixed_(\d[a-z])\.(branch\w+)\.bn", r"backbone/mixed_\1/\2_norm"),
    *kernel("fc", "head/logits", "dense"),
    Rule(r"AuxLogits\..*", None),
)


def _in_order() -> list[str]:
    """The paths of all convolutions, in the order in which Keras makes them."""
    paths = [unit.name for stem in STEMS for unit in stem]
    for name, branches in BLOCKS.items():
        for step in (step for branch in branches for step in branch):
            if not isinstance(step, str):
                units = (step,) if isinstance(step, Unit) else step
                paths += [f"{name}/{unit.name}" for unit in units]
    return paths


def _keras(first: int) -> Table:
    """The table where the first convolution has the number `first`; no number counts as 0."""
    paths = _in_order()

    def ours(suffix: str):
        def target(match: re.Match[str]) -> str:
            index = int(match[1] or 0) - first
            known = 0 <= index < len(paths)
            return f"backbone/{paths[index] if known else f'of_none_{index}'}{suffix}"

        return target

    return (
        *keras_kernel(r"conv2d(?:_(\d+))?", ours("")),
        *keras_norm(r"batch_normalization(?:_(\d+))?", ours("_norm")),
        *keras_kernel("predictions", "head/logits"),
    )


RULES = {"timm": _TORCH, "torchvision": _TORCH, "keras": _keras(0), "keras_from_1": _keras(1)}
