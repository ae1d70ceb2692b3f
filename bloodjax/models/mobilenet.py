"""MobileNetV1 (Howard et al., 2017, arXiv:1704.04861), in its four widths.

The reference implementations are `keras.applications`' and timm's.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import STEM, Backbone
from bloodjax.models.layers import Conv, DepthwiseConv, maybe_remat
from bloodjax.models.norms import BatchNorm, conv_norm
from bloodjax.ops.elementwise import relu6
from bloodjax.ops.pooling import spatial_mean

NETWORKS = {
    f"mobilenetv1_{percent:03d}": {"multiplier": percent / 100} for percent in (100, 75, 50, 25)
}
MIN_IMAGE_SIZE = 32
VARIANTS = {
    "keras": {},
    "timm": {"stem_padding": "symmetric", "padding": "symmetric", "epsilon": 1e-5},
}

# Blocks per stage; every stage but the first begins with stride 2.
DEPTHS = (1, 2, 2, 6, 2)
_WIDTHS = (64, 128, 256, 512, 1024)


class Block(nn.Module):
    """Depthwise separable convolution, with BatchNorm and ReLU6 after each of its two parts.

    Attributes:
      features: output channels.
      stride: stride of the depthwise convolution.
      padding: padding mode of the depthwise convolution, see `layers.pads`.
      epsilon: BatchNorm's epsilon.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    features: int
    stride: int
    padding: str
    epsilon: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], update_stats: bool
    ) -> Float[Array, "b h2 w2 features"]:
        """Applies the depthwise, then the pointwise convolution."""
        depthwise = DepthwiseConv(
            3,
            self.stride,
            self.dtype,
            padding=self.padding,
            use_bias=False,
            name="depthwise",
        )
        pointwise = Conv(self.features, 1, dtype=self.dtype, name="pointwise")
        for conv in (depthwise, pointwise):
            norm = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=f"{conv.name}_norm",
            )
            x = relu6(conv_norm(conv, norm, x))
        return x


class MobileNet(Backbone):
    """MobileNetV1. Has no residual branches, so `drop_path` and `train` have no effect.

    It has five stages, which end after the last block of each resolution.

    Attributes:
      multiplier: width multiplier of every layer's channels.
      depths: blocks per stage.
      widths: channels per stage, before `multiplier`.
      stem_padding: padding mode of the first convolution, see `layers.pads`.
      padding: padding mode of the depthwise convolutions.
      epsilon: BatchNorm's epsilon.
    """

    multiplier: float = 1.0
    depths: Sequence[int] = DEPTHS
    widths: Sequence[int] = _WIDTHS
    stem_padding: str = "same"
    padding: str = "after"
    epsilon: float = 1e-3

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features of 1024 times `multiplier` channels; see `Backbone`."""
        del train
        stem = int(32 * self.multiplier)
        conv = Conv(stem, 3, 2, self.stem_padding, dtype=self.dtype, name="stem")
        norm = BatchNorm(
            self.in_stage(STEM, update_stats),
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.epsilon,
            name="stem_norm",
        )
        x = relu6(conv_norm(conv, norm, x))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                x = maybe_remat(Block, self.remat)(
                    features=int(width * self.multiplier),
                    stride=2 if stage > 0 and block == 0 else 1,
                    padding=self.padding,
                    epsilon=self.epsilon,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x, self.in_stage(stage, update_stats))
            x = self.end_stage(stage, x)
        return spatial_mean(x)
