"""Name rules of VGG.

A network without its dense layers (`top=False`) takes the same tables, with "backbone/top_0" and
"backbone/top_1" among the paths that the merge leaves out.
"""

from __future__ import annotations

import re

from bloodjax.models.vgg import NETWORKS
from bloodjax.pretrained.name_maps import Table, batch_norm, keras_kernel, kernel


def _features(name: str) -> Table:
    """The convolutions, which PyTorch's libraries number together with all that follows them."""
    norm = NETWORKS[name]["norm"]
    table: Table = ()
    index = 0
    for stage, depth in enumerate(NETWORKS[name]["depths"]):
        for i in range(depth):
            ours = f"backbone/stage_{stage}_conv_{i}"
            table += kernel(rf"features\.{index}", ours)
            if norm:
                table += batch_norm(rf"features\.{index + 1}", f"{ours}_norm")
            index += 3 if norm else 2
        index += 1  # the max pool
    return table


def _torchvision(name: str) -> Table:
    return (
        *_features(name),
        *kernel(r"classifier\.0", "backbone/top_0", "vgg_fc"),
        *kernel(r"classifier\.3", "backbone/top_1", "dense"),
        *kernel(r"classifier\.6", "head/logits", "dense"),
    )


def _timm(name: str) -> Table:
    return (
        *_features(name),
        *kernel(r"pre_logits\.fc1", "backbone/top_0", "vgg_fc"),
        *kernel(r"pre_logits\.fc2", "backbone/top_1", "dense"),
        *kernel(r"head\.fc", "head/logits", "dense"),
    )


def _keras_conv(match: re.Match[str]) -> str:
    return f"backbone/stage_{int(match[1]) - 1}_conv_{int(match[2]) - 1}"


_KERAS: Table = (
    # Keras's weights take BGR images.
    *keras_kernel("block1_conv1", "backbone/stage_0_conv_0", "keras_conv_bgr"),
    *keras_kernel(r"block(\d)_conv(\d)", _keras_conv),
    *keras_kernel("fc1", "backbone/top_0"),
    *keras_kernel("fc2", "backbone/top_1"),
    *keras_kernel("predictions", "head/logits"),
)

# An entry may be a function of the network's name.
RULES = {"torchvision": _torchvision, "timm": _timm, "keras": _KERAS}
