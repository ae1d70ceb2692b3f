"""Name maps of ResNet: timm and torchvision, which use the same names, and Keras."""

from __future__ import annotations

import re

from bloodjax.pretrained.name_maps import Target, batch_norm, keras_kernel, keras_norm, kernel

# "layer1.0" is the first block of the first stage; layers in a block count from 1.
_BLOCK = r"layer(\d)\.(\d+)"
# "conv2_block1" is the first block of the first stage; layer 0 is the shortcut.
_KERAS_BLOCK = r"conv([2-5])_block(\d+)"


def _block(layer: str, first_stage: int, first_block: int) -> Target:
    """Our path of a layer in a block.

    Args:
      layer: our name, such as "shortcut"; "conv_{}" is filled with the file's layer number minus 1.
      first_stage: the file's number of the first stage.
      first_block: the file's number of the first block.
    """

    def module(match: re.Match[str]) -> str:
        stage, block, *numbers = (int(number) for number in match.groups())
        name = layer.format(*(number - 1 for number in numbers))
        return f"backbone/stage_{stage - first_stage}_block_{block - first_block}/{name}"

    return module


_TORCH = (
    *kernel("conv1", "backbone/stem"),
    *batch_norm("bn1", "backbone/stem_norm"),
    *kernel(rf"{_BLOCK}\.conv(\d)", _block("conv_{}", 1, 0)),
    *batch_norm(rf"{_BLOCK}\.bn(\d)", _block("norm_{}", 1, 0)),
    *kernel(rf"{_BLOCK}\.downsample\.0", _block("shortcut", 1, 0)),
    *batch_norm(rf"{_BLOCK}\.downsample\.1", _block("shortcut_norm", 1, 0)),
    *kernel("fc", "head/logits", "dense"),
)

_KERAS = (
    # The published weights are for BGR images; ours are for RGB.
    *keras_kernel("conv1_conv", "backbone/stem", "keras_conv_bgr"),
    *keras_norm("conv1_bn", "backbone/stem_norm"),
    *keras_kernel(rf"{_KERAS_BLOCK}_0_conv", _block("shortcut", 2, 1)),
    *keras_norm(rf"{_KERAS_BLOCK}_0_bn", _block("shortcut_norm", 2, 1)),
    *keras_kernel(rf"{_KERAS_BLOCK}_([1-3])_conv", _block("conv_{}", 2, 1)),
    *keras_norm(rf"{_KERAS_BLOCK}_([1-3])_bn", _block("norm_{}", 2, 1)),
    # "probs" in the files without Keras 3's names.
    *keras_kernel("(?:predictions|probs)", "head/logits"),
)

NAME_MAPS = {"timm": _TORCH, "torchvision": _TORCH, "keras": _KERAS}
