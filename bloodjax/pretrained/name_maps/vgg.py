"""Name maps of VGG.

They are the same for a network without its dense layers (`top=False`); the merge then ignores
"backbone/top_0" and "backbone/top_1".
"""

from __future__ import annotations

import re

from bloodjax.models.registry import Architecture
from bloodjax.pretrained.name_maps import NameMap, batch_norm, keras_kernel, kernel


def _features(architecture: Architecture) -> NameMap:
    """Maps the convolutions; torchvision and timm also count BatchNorm, ReLU and pooling."""
    norm = architecture.fields["norm"]
    name_map: NameMap = ()
    index = 0
    for stage, depth in enumerate(architecture.fields["depths"]):
        for i in range(depth):
            ours = f"backbone/stage_{stage}_conv_{i}"
            name_map += kernel(rf"features\.{index}", ours)
            if norm:
                name_map += batch_norm(rf"features\.{index + 1}", f"{ours}_norm")
            index += 3 if norm else 2
        index += 1  # the max pool
    return name_map


def _torchvision(architecture: Architecture) -> NameMap:
    return (
        *_features(architecture),
        *kernel(r"classifier\.0", "backbone/top_0", "vgg_fc"),
        *kernel(r"classifier\.3", "backbone/top_1", "dense"),
        *kernel(r"classifier\.6", "head/logits", "dense"),
    )


def _timm(architecture: Architecture) -> NameMap:
    return (
        *_features(architecture),
        *kernel(r"pre_logits\.fc1", "backbone/top_0", "vgg_fc"),
        *kernel(r"pre_logits\.fc2", "backbone/top_1", "dense"),
        *kernel(r"head\.fc", "head/logits", "dense"),
    )


def _keras_conv(match: re.Match[str]) -> str:
    return f"backbone/stage_{int(match[1]) - 1}_conv_{int(match[2]) - 1}"


_KERAS: NameMap = (
    # The published weights are for BGR images; ours are for RGB.
    *keras_kernel("block1_conv1", "backbone/stage_0_conv_0", "keras_conv_bgr"),
    *keras_kernel(r"block(\d)_conv(\d)", _keras_conv),
    *keras_kernel("fc1", "backbone/top_0"),
    *keras_kernel("fc2", "backbone/top_1"),
    *keras_kernel("predictions", "head/logits"),
)

NAME_MAPS = {"torchvision": _torchvision, "timm": _timm, "keras": _KERAS}
