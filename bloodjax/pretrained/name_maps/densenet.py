"""Name maps of DenseNet: timm and torchvision, which use the same names, and Keras."""

from __future__ import annotations

import re

from bloodjax.pretrained.name_maps import Target, batch_norm, keras_kernel, keras_norm, kernel

# Blocks and layers count from 1. torchvision's published files have "norm.1" for "norm1".
_LAYER = r"features\.denseblock(\d)\.denselayer(\d+)"
_TRANSITION = r"features\.transition(\d)"
# "conv2_block1" is the first layer of the first block. Older files have "conv1/bn" for "conv1_bn".
_KERAS_LAYER = r"conv([2-5])_block(\d+)"


def _layer(name: str, first_stage: int, first: int) -> Target:
    """Our path of a layer's part.

    Args:
      name: template of our part's name, "norm_{}" or "conv_{}".
      first_stage: the file's number of the first stage.
      first: the file's number of the first norm or convolution.
    """

    def module(match: re.Match[str]) -> str:
        layer = f"stage_{int(match[1]) - first_stage}_layer_{int(match[2]) - 1}"
        return f"backbone/{layer}/{name.format(int(match[3]) - first)}"

    return module


def _transition(suffix: str, first: int) -> Target:
    return lambda match: f"backbone/transition_{int(match[1]) - first}{suffix}"


_TORCH = (
    *kernel(r"features\.conv0", "backbone/stem"),
    *batch_norm(r"features\.norm0", "backbone/stem_norm"),
    *batch_norm(rf"{_LAYER}\.norm\.?(\d)", _layer("norm_{}", 1, 1)),
    *kernel(rf"{_LAYER}\.conv\.?(\d)", _layer("conv_{}", 1, 1)),
    *batch_norm(rf"{_TRANSITION}\.norm", _transition("_norm", 1)),
    *kernel(rf"{_TRANSITION}\.conv", _transition("", 1)),
    *batch_norm(r"features\.norm5", "backbone/norm"),
    *kernel("classifier", "head/logits", "dense"),
)

_KERAS = (
    *keras_kernel("conv1[_/]conv", "backbone/stem"),
    *keras_norm("conv1[_/]bn", "backbone/stem_norm"),
    *keras_norm(rf"{_KERAS_LAYER}_([01])_bn", _layer("norm_{}", 2, 0)),
    *keras_kernel(rf"{_KERAS_LAYER}_([12])_conv", _layer("conv_{}", 2, 1)),
    *keras_norm(r"pool(\d)_bn", _transition("_norm", 2)),
    *keras_kernel(r"pool(\d)_conv", _transition("", 2)),
    *keras_norm("bn", "backbone/norm"),
    *keras_kernel("(?:predictions|fc1000)", "head/logits"),
)

NAME_MAPS = {"timm": _TORCH, "torchvision": _TORCH, "keras": _KERAS}
