"""EfficientNet B0 to B7 (Tan and Le, 2019, arXiv:1905.11946), Lite0 to Lite4, and V2 S, M and L.

The Lite networks (Google's TPU repository, 2020) omit squeeze-and-excitation, use ReLU6, and do not
scale the stem, the first stage and the last. V2 (Tan and Le, 2021, arXiv:2104.00298) begins with
blocks that fuse the expanding and the depthwise convolution. The reference implementation is
timm's.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import STEM, Backbone
from bloodjax.models.layers import Conv, DepthwiseConv, Dropout, maybe_remat
from bloodjax.models.norms import BatchNorm, conv_norm
from bloodjax.ops.elementwise import relu6, silu, written
from bloodjax.ops.pooling import spatial_mean

_ACTIVATIONS = {"silu": silu, "relu6": relu6}
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1))


@dataclasses.dataclass(frozen=True)
class Stage:
    """Configuration of a stage: consecutive blocks of one type.

    Attributes:
      blocks: number of blocks.
      channels: output channels of each block.
      expand: hidden channels as a multiple of the block's input channels.
      size: kernel size.
      stride: stride of the first block; the others have stride 1.
      fused: replace the expanding and the depthwise convolution by one full convolution.
    """

    blocks: int
    channels: int
    expand: int
    size: int = 3
    stride: int = 1
    fused: bool = False


_B0 = (
    Stage(1, 16, 1),
    Stage(2, 24, 6, 3, 2),
    Stage(2, 40, 6, 5, 2),
    Stage(3, 80, 6, 3, 2),
    Stage(3, 112, 6, 5, 1),
    Stage(4, 192, 6, 5, 2),
    Stage(1, 320, 6),
)
# B0 to B7: (width, depth) as multiples of B0's.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6))
_SCALES += ((2.0, 3.1),)
# V2: (blocks, channels) per stage; the first three stages are fused.
_V2 = {
    "s": ((2, 24), (4, 48), (4, 64), (6, 128), (9, 160), (15, 256)),
    "m": ((3, 24), (5, 48), (5, 80), (7, 160), (14, 176), (18, 304), (5, 512)),
    "l": ((4, 32), (7, 64), (7, 96), (10, 192), (19, 224), (25, 384), (7, 640)),
}
_V2_EXPAND, _V2_STRIDES = (1, 4, 4, 4, 6, 6, 6), (1, 2, 2, 2, 1, 2, 1)


def _round(channels: float) -> int:
    """Rounds to the nearest multiple of 8, but never down by more than 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _scaled(width: float, depth: float, lite: bool) -> dict[str, object]:
    stages = []
    for i, stage in enumerate(_B0):
        fixed = lite and i in (0, len(_B0) - 1)
        blocks = stage.blocks if fixed else math.ceil(depth * stage.blocks)
        stages.append(
            dataclasses.replace(stage, blocks=blocks, channels=_round(width * stage.channels))
        )
    stem, features = (32, 1280) if lite else (_round(width * 32), _round(width * 1280))
    return {
        "stages": tuple(stages),
        "stem": stem,
        "features": features,
        "activation": "relu6" if lite else "silu",
        "squeeze": not lite,
    }


def _v2(sizes: tuple[tuple[int, int], ...]) -> dict[str, object]:
    stages = tuple(
        Stage(blocks, channels, _V2_EXPAND[i], 3, _V2_STRIDES[i], fused=i < 3)
        for i, (blocks, channels) in enumerate(sizes)
    )
    return {"stages": stages, "stem": sizes[0][1], "features": 1280}


NETWORKS = (
    {f"efficientnet_b{i}": _scaled(*scale, lite=False) for i, scale in enumerate(_SCALES)}
    | {f"efficientnet_lite{i}": _scaled(*scale, lite=True) for i, scale in enumerate(_SCALES[:5])}
    | {f"efficientnetv2_{size}": _v2(sizes) for size, sizes in _V2.items()}
)
MIN_IMAGE_SIZE = 32
# "tf" is Google's original implementation, as in timm's tf_efficientnet_* and in Keras.
VARIANTS = {
    "tf": {"padding": "same", "epsilon": 1e-3},
    "timm": {"padding": "symmetric", "epsilon": 1e-5},
    # torchvision's B5 to B7 and V2; its B0 to B4 are as timm's.
    "torchvision": {"padding": "symmetric", "epsilon": 1e-3},
}


class Block(nn.Module):
    """Inverted residual block (MBConv), its fused form, or a depthwise separable convolution.

    Attributes:
      stage: configuration of the stage that the block belongs to.
      stride: 1 or 2.
      drop_path: stochastic depth's drop rate, in [0, 1).
      squeeze: whether unfused blocks have squeeze-and-excitation.
      activation: a key of `_ACTIVATIONS`.
      padding: padding mode, see `layers.pads`.
      epsilon: BatchNorm's epsilon.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    stage: Stage
    stride: int
    drop_path: float
    squeeze: bool
    activation: str
    padding: str
    epsilon: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, update_stats: bool
    ) -> Float[Array, "b h2 w2 d"]:
        """Convolves, and adds the input where the shape is unchanged."""
        stage, act = self.stage, _ACTIVATIONS[self.activation]

        def norm(name):
            return BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=f"{name}_norm",
            )

        def normed(module, y, name):
            return conv_norm(module, norm(name), y)

        def layer(features, size, stride, name):
            return Conv(features, size, stride, self.padding, False, self.dtype, _INIT, name=name)

        def conv(y, features, size, stride, name):
            return normed(layer(features, size, stride, name), y, name)

        hidden, y = stage.expand * x.shape[-1], x
        if stage.fused and stage.expand == 1:
            y = act(conv(y, stage.channels, stage.size, self.stride, "project"))
        else:
            if stage.fused:
                y = act(conv(y, hidden, stage.size, self.stride, "expand"))
            else:
                depthwise = DepthwiseConv(
                    stage.size,
                    self.stride,
                    self.dtype,
                    _DEPTHWISE_INIT,
                    self.padding,
                    use_bias=False,
                    name="depthwise",
                )
                expanded, mean = stage.expand != 1, None
                depthwise_norm = norm("depthwise")
                in_bfloat16 = jnp.dtype(self.dtype) == jnp.bfloat16
                if self.activation == "silu" and in_bfloat16 and depthwise_norm.foldable:
                    shift = None
                    if expanded:
                        expand = layer(hidden, 1, 1, "expand")
                        y, shift = expand.without_offset(y, norm("expand").affine)
                    y, mean = depthwise.between_silus(y, shift, depthwise_norm.affine)
                else:
                    if expanded:
                        y = act(conv(y, hidden, 1, 1, "expand"))
                    y = act(conv_norm(depthwise, depthwise_norm, y))
                if self.squeeze:
                    y = self._excite(y, mean, x.shape[-1] // 4, act)
            y = conv(y, stage.channels, 1, 1, "project")
        if x.shape != y.shape:
            return y
        return x + Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(y, train)

    def _excite(self, y, mean, squeezed, act):
        """Squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507); `mean` may be None."""
        y = written(y)
        scale = y.mean(axis=(1, 2)) if mean is None else mean
        scale = act(nn.Dense(squeezed, dtype=self.dtype, name="se_reduce")(scale))
        scale = nn.Dense(y.shape[-1], dtype=self.dtype, name="se_expand")(scale)
        return y * jax.nn.sigmoid(scale)[:, None, None]


class EfficientNet(Backbone):
    """EfficientNet, EfficientNet-Lite or EfficientNetV2.

    As in timm, stochastic depth's rate is `drop_path` times the fraction of blocks before a block.

    Attributes:
      stages: configuration of each stage.
      stem: channels of the first convolution.
      features: channels of the last convolution.
      activation: "silu" or "relu6".
      squeeze: whether unfused blocks have squeeze-and-excitation.
      padding: padding mode, see `layers.pads`.
      epsilon: BatchNorm's epsilon.
    """

    stages: tuple[Stage, ...]
    stem: int
    features: int
    activation: str = "silu"
    squeeze: bool = True
    padding: str = "same"
    epsilon: float = 1e-3

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.stages)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features of `features` channels; see `Backbone`."""
        x = self._conv(x, self.stem, 3, 2, "stem", self.in_stage(STEM, update_stats))
        total, done = sum(stage.blocks for stage in self.stages), 0
        for i, stage in enumerate(self.stages):
            for block in range(stage.blocks):
                x = maybe_remat(Block, self.remat)(
                    stage,
                    stride=stage.stride if block == 0 else 1,
                    drop_path=self.drop_path * done / total,
                    squeeze=self.squeeze,
                    activation=self.activation,
                    padding=self.padding,
                    epsilon=self.epsilon,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{i}_block_{block}",
                )(x, self.in_stage(i, train), self.in_stage(i, update_stats))
                done += 1
            x = self.end_stage(i, x)
        return spatial_mean(self._conv(x, self.features, 1, 1, "last", update_stats))

    def _conv(self, x, features, size, stride, name, update_stats):
        conv = Conv(features, size, stride, self.padding, False, self.dtype, _INIT, name=name)
        norm = BatchNorm(
            update_stats,
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.epsilon,
            name=f"{name}_norm",
        )
        return _ACTIVATIONS[self.activation](conv_norm(conv, norm, x))
