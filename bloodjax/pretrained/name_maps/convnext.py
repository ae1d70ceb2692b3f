"""Name maps of ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

import re

from bloodjax.pretrained.name_maps import (
    NameMap,
    Rule,
    Target,
    keras_kernel,
    keras_norm,
    kernel,
    layer_norm,
)


def _timm() -> NameMap:
    block, ours = r"stages\.(\d+)\.blocks\.(\d+)\.", r"backbone/stage_\1_block_\2/"
    return (
        *kernel(r"stem\.0", "backbone/stem"),
        *layer_norm(r"stem\.1", "backbone/stem_norm"),
        *layer_norm(r"stages\.([1-9])\.downsample\.0", r"backbone/downsample_\1_norm"),
        *kernel(r"stages\.([1-9])\.downsample\.1", r"backbone/downsample_\1"),
        *kernel(block + "conv_dw", ours + "depthwise", "depthwise"),
        *layer_norm(block + "norm", ours + "norm"),
        # 1x1 convolutions in the smaller sizes, dense layers in the larger ones.
        *kernel(block + r"mlp\.fc1", ours + "expand", "dense"),
        *layer_norm(block + r"mlp\.grn", ours + "response_norm"),
        *kernel(block + r"mlp\.fc2", ours + "project", "dense"),
        Rule(block + "gamma", f"params/{ours}scale"),
        *layer_norm(r"head\.norm", "backbone/norm"),
        *kernel(r"head\.fc", "head/logits", "dense"),
    )


def _every_second(first: int, module: str) -> Target:
    """In torchvision, `features` alternate: stem, stage 0, downsampling 1, stage 1, ..."""

    def target(match: re.Match[str]) -> str:
        stage, odd = divmod(int(match[1]) - first, 2)
        # A number of the other parity gets a path that does not exist; the merge reports it.
        return match.expand(module.replace("#", "none" if odd else str(stage)))

    return target


def _torchvision() -> NameMap:
    block = r"features\.(\d+)\.(\d+)\."

    def ours(part: str) -> Target:
        return _every_second(1, rf"backbone/stage_#_block_\2/{part}")

    def between(part: str) -> Target:
        return _every_second(0, f"backbone/downsample_#{part}")

    return (
        *kernel(r"features\.0\.0", "backbone/stem"),
        *layer_norm(r"features\.0\.1", "backbone/stem_norm"),
        *layer_norm(r"features\.([1-9])\.0", between("_norm")),
        *kernel(r"features\.([1-9])\.1", between("")),
        *kernel(block + r"block\.0", ours("depthwise"), "depthwise"),
        *layer_norm(block + r"block\.2", ours("norm")),
        *kernel(block + r"block\.3", ours("expand"), "dense"),
        *kernel(block + r"block\.5", ours("project"), "dense"),
        Rule(block + "layer_scale", lambda match: f"params/{ours('scale')(match)}", "flat"),
        *layer_norm(r"classifier\.0", "backbone/norm"),
        *kernel(r"classifier\.2", "head/logits", "dense"),
    )


def _keras() -> NameMap:
    # In `.h5` files the stem's and downsampling's layers have the names of their containers.
    block, ours = r".*_stage_(\d)_block_(\d+)_", r"backbone/stage_\1_block_\2/"

    def between(part: str) -> Target:
        return lambda match: f"backbone/downsample_{int(match[1]) + 1}{part}"

    return (
        *keras_kernel(".*_stem(?:_conv)?", "backbone/stem"),
        *keras_norm(".*_stem(?:_layernorm)?", "backbone/stem_norm"),
        *keras_norm(r".*_downsampling_(?:layernorm|block)_(\d)", between("_norm")),
        *keras_kernel(r".*_downsampling_(?:conv|block)_(\d)", between("")),
        *keras_kernel(block + "depthwise_conv", ours + "depthwise", "keras_grouped"),
        *keras_norm(block + "layernorm", ours + "norm"),
        *keras_kernel(block + "pointwise_conv_1", ours + "expand"),
        *keras_kernel(block + "pointwise_conv_2", ours + "project"),
        # The name of Keras's variable varies: gamma, variable, variable_7, ...
        Rule(block + "layer_scale/.+", f"params/{ours}scale"),
        *keras_norm(".*_head_layernorm", "backbone/norm"),
        *keras_kernel(".*_head_dense", "head/logits"),
    )


NAME_MAPS = {"timm": _timm(), "torchvision": _torchvision(), "keras": _keras()}
