"""Name maps of EfficientNet, EfficientNet-Lite and EfficientNetV2."""

from __future__ import annotations

import re

from bloodjax.models.registry import Architecture
from bloodjax.pretrained.name_maps import (
    NameMap,
    Rule,
    batch_norm,
    keras_kernel,
    keras_norm,
    kernel,
)


def _timm(architecture: Architecture) -> NameMap:
    block = r"blocks\.(\d+)\.(\d+)\."
    ours = r"backbone/stage_\1_block_\2/"
    # The first stage's blocks do not expand, so their norms have other numbers.
    first, ours_first = r"blocks\.0\.(\d+)\.", r"backbone/stage_0_block_\1/"
    name_map = (
        *kernel("conv_stem", "backbone/stem"),
        *batch_norm("bn1", "backbone/stem_norm"),
        *kernel("conv_head", "backbone/last"),
        *batch_norm("bn2", "backbone/last_norm"),
        *kernel("classifier", "head/logits", "dense"),
        *kernel(block + r"se\.conv_(reduce|expand)", ours + r"se_\3", "dense"),
        *kernel(block + "conv_dw", ours + "depthwise", "depthwise"),
    )
    if "v2" in architecture.name:
        name_map += (
            *kernel(first + "conv", ours_first + "project"),
            *batch_norm(first + "bn1", ours_first + "project_norm"),
            # The next two stages are fused.
            *kernel(block + "conv_exp", ours + "expand"),
            *batch_norm(r"blocks\.([12])\.(\d+)\.bn2", ours + "project_norm"),
        )
    else:
        name_map += (
            *batch_norm(first + "bn1", ours_first + "depthwise_norm"),
            *kernel(first + "conv_pw", ours_first + "project"),
            *batch_norm(first + "bn2", ours_first + "project_norm"),
        )
    return (
        *name_map,
        *kernel(block + "conv_pw", ours + "expand"),
        *kernel(block + "conv_pwl", ours + "project"),
        *batch_norm(block + "bn1", ours + "expand_norm"),
        *batch_norm(block + "bn2", ours + "depthwise_norm"),
        *batch_norm(block + "bn3", ours + "project_norm"),
    )


def _torchvision(architecture: Architecture) -> NameMap:
    """In torchvision the parts of a block are numbered, and depend on the stage."""
    stages = architecture.fields["stages"]
    last = len(stages) + 1
    name_map: NameMap = (
        *kernel(r"features\.0\.0", "backbone/stem"),
        *batch_norm(r"features\.0\.1", "backbone/stem_norm"),
        *kernel(rf"features\.{last}\.0", "backbone/last"),
        *batch_norm(rf"features\.{last}\.1", "backbone/last_norm"),
        *kernel(r"classifier\.1", "head/logits", "dense"),
    )
    for i, stage in enumerate(stages):
        block, ours = rf"features\.{i + 1}\.(\d+)\.block\.", rf"backbone/stage_{i}_block_\1/"
        if stage.fused:
            parts = ("project",) if stage.expand == 1 else ("expand", "project")
        else:
            parts = ("expand",) * (stage.expand != 1) + ("depthwise", "se", "project")
        for number, part in enumerate(parts):
            if part == "se":
                name_map += kernel(rf"{block}{number}\.fc1", ours + "se_reduce", "dense")
                name_map += kernel(rf"{block}{number}\.fc2", ours + "se_expand", "dense")
            else:
                transform = "depthwise" if part == "depthwise" else "conv"
                name_map += kernel(rf"{block}{number}\.0", ours + part, transform)
                name_map += batch_norm(rf"{block}{number}\.1", ours + part + "_norm")
    return name_map


def _flat(architecture: Architecture) -> NameMap:
    """Names of Melas-Kyriazi's EfficientNet-PyTorch, which numbers blocks across all stages."""
    places = [
        (stage, block)
        for stage, config in enumerate(architecture.fields["stages"])
        for block in range(config.blocks)
    ]

    def ours(part: str):
        def target(match: re.Match[str]) -> str:
            number = int(match[1])
            stage, block = places[number] if number < len(places) else (number, "of_none")
            return f"backbone/stage_{stage}_block_{block}/{part}"

        return target

    block = r"_blocks\.(\d+)\."
    return (
        *kernel("_conv_stem", "backbone/stem"),
        *batch_norm("_bn0", "backbone/stem_norm"),
        *kernel("_conv_head", "backbone/last"),
        *batch_norm("_bn1", "backbone/last_norm"),
        *kernel("_fc", "head/logits", "dense"),
        *kernel(block + "_expand_conv", ours("expand")),
        *batch_norm(block + "_bn0", ours("expand_norm")),
        *kernel(block + "_depthwise_conv", ours("depthwise"), "depthwise"),
        *batch_norm(block + "_bn1", ours("depthwise_norm")),
        *kernel(block + "_se_reduce", ours("se_reduce"), "dense"),
        *kernel(block + "_se_expand", ours("se_expand"), "dense"),
        *kernel(block + "_project_conv", ours("project")),
        *batch_norm(block + "_bn2", ours("project_norm")),
    )


def _keras_block(part: str):
    """Our path for Keras's "block2a_", which counts stages from 1 and blocks by letters."""

    def target(match: re.Match[str]) -> str:
        stage, block = int(match[1]) - 1, ord(match[2]) - ord("a")
        return f"backbone/stage_{stage}_block_{block}/{part}"

    return target


_BLOCK = r"block(\d)([a-z])_"

_KERAS: NameMap = (
    *keras_kernel("stem_conv", "backbone/stem"),
    *keras_norm("stem_bn", "backbone/stem_norm"),
    *keras_kernel("top_conv", "backbone/last"),
    *keras_norm("top_bn", "backbone/last_norm"),
    *keras_kernel("predictions", "head/logits"),
    *keras_kernel(_BLOCK + "expand_conv", _keras_block("expand")),
    *keras_norm(_BLOCK + "expand_bn", _keras_block("expand_norm")),
    *keras_kernel(_BLOCK + "dwconv2?", _keras_block("depthwise"), "keras_depthwise"),
    Rule(
        _BLOCK + "dwconv2?/depthwise_kernel",
        lambda match: f"params/{_keras_block('depthwise')(match)}/kernel",
        "keras_depthwise",
    ),
    *keras_norm(_BLOCK + "bn", _keras_block("depthwise_norm")),
    *keras_kernel(_BLOCK + "se_reduce", _keras_block("se_reduce"), "keras_conv_as_dense"),
    *keras_kernel(_BLOCK + "se_expand", _keras_block("se_expand"), "keras_conv_as_dense"),
    *keras_kernel(_BLOCK + "project_conv", _keras_block("project")),
    *keras_norm(_BLOCK + "project_bn", _keras_block("project_norm")),
    # `pretrained_cfg.keras_normalization` reads them.
    Rule(r"normalization(_\d+)?/(mean|variance|count)", None),
)

NAME_MAPS = {"timm": _timm, "torchvision": _torchvision, "keras": _KERAS, "flat": _flat}
