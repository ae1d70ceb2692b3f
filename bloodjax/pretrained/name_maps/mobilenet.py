"""Name maps of MobileNetV1."""

from __future__ import annotations

import re

from bloodjax.models.mobilenet import DEPTHS
from bloodjax.pretrained.name_maps import (
    NameMap,
    Rule,
    batch_norm,
    keras_kernel,
    keras_norm,
    kernel,
)

_BLOCK = r"blocks\.(\d)\.(\d)\."
_OURS = r"backbone/stage_\1_block_\2/"

_TIMM: NameMap = (
    *kernel("conv_stem", "backbone/stem"),
    *batch_norm("bn1", "backbone/stem_norm"),
    *kernel(_BLOCK + "conv_dw", _OURS + "depthwise", "depthwise"),
    *batch_norm(_BLOCK + "bn1", _OURS + "depthwise_norm"),
    *kernel(_BLOCK + "conv_pw", _OURS + "pointwise"),
    *batch_norm(_BLOCK + "bn2", _OURS + "pointwise_norm"),
    *kernel("classifier", "head/logits", "dense"),
)

# Keras numbers blocks across all stages, from 1.
_PLACES = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]


def _keras_block(part: str):
    def target(match: re.Match[str]) -> str:
        number = int(match[1]) - 1
        stage, block = _PLACES[number] if number < len(_PLACES) else (number, "of_none")
        return f"backbone/stage_{stage}_block_{block}/{part}"

    return target


_KERAS: NameMap = (
    *keras_kernel("conv1", "backbone/stem"),
    *keras_norm("conv1_bn", "backbone/stem_norm"),
    # Keras 2 calls the kernel depthwise_kernel.
    Rule(
        r"conv_dw_(\d+)/(depthwise_)?kernel",
        lambda match: f"params/{_keras_block('depthwise')(match)}/kernel",
        "keras_depthwise",
    ),
    *keras_norm(r"conv_dw_(\d+)_bn", _keras_block("depthwise_norm")),
    *keras_kernel(r"conv_pw_(\d+)", _keras_block("pointwise")),
    *keras_norm(r"conv_pw_(\d+)_bn", _keras_block("pointwise_norm")),
    *keras_kernel("conv_preds", "head/logits", "keras_conv_as_dense"),
)

NAME_MAPS = {"keras": _KERAS, "timm": _TIMM}
