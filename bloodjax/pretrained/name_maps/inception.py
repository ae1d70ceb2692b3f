"""Name maps of Inception-v3.

Keras gives the layers automatic names ("conv2d", "conv2d_1", ...) in the order of creation, which
is the order of `STEMS` and `BLOCKS`. The first network of a process starts at "conv2d" ("keras").
Early versions of Keras started at "conv2d_1" ("keras_from_1"). A single name does not tell which.
"""

from __future__ import annotations

import re

from bloodjax.models.inception import BLOCKS, STEMS, Unit
from bloodjax.pretrained.name_maps import (
    NameMap,
    Rule,
    batch_norm,
    keras_kernel,
    keras_norm,
    kernel,
)

_TORCH: NameMap = (
    *kernel(r"Conv2d_(\d[a-z])_\dx\d\.conv", r"backbone/stem_\1"),
    *batch_norm(r"Conv2d_(\d[a-z])_\dx\d\.bn", r"backbone/stem_\1_norm"),
    *kernel(r"Mixed_(\d[a-z])\.(branch\w+)\.conv", r"backbone/mixed_\1/\2"),
    *batch_norm(r"Mixed_(\d[a-z])\.(branch\w+)\.bn", r"backbone/mixed_\1/\2_norm"),
    *kernel("fc", "head/logits", "dense"),
    Rule(r"AuxLogits\..*", None),
)


def _in_order() -> list[str]:
    """Paths of all convolutions, in the order in which Keras creates them."""
    paths = [unit.name for stem in STEMS for unit in stem]
    for name, branches in BLOCKS.items():
        for step in (step for branch in branches for step in branch):
            if not isinstance(step, str):
                units = (step,) if isinstance(step, Unit) else step
                paths += [f"{name}/{unit.name}" for unit in units]
    return paths


def _keras(first: int) -> NameMap:
    """Keras's name map if the first convolution has number `first`; no number means 0."""
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


NAME_MAPS = {"timm": _TORCH, "torchvision": _TORCH, "keras": _keras(0), "keras_from_1": _keras(1)}
