"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385).

ResNet-18 and 34 have blocks of two 3x3 convolutions; 50, 101 and 152 have bottlenecks of 1x1, 3x3
and 1x1. In timm and torchvision the stride is in the bottleneck's 3x3 convolution, in Keras in its
first 1x1 convolution, as in the paper. The reference implementations are these three.

The variant "small" is for images of 28 to 64 pixels: its stem is a 3x3 convolution with stride 1,
and no pooling follows, as in the paper's networks for CIFAR-10 and in MedMNIST's benchmark at 28
px. There are no pretrained weights for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import STEM, Backbone, drop_path_rates
from bloodjax.models.layers import Conv, Dropout, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm, conv_norm
from bloodjax.ops.elementwise import relu
from bloodjax.ops.pooling import spatial_mean

NETWORKS = {
    "resnet18": {"depths": (2, 2, 2, 2), "bottleneck": False},
    "resnet34": {"depths": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet101": {"depths": (3, 4, 23, 3), "bottleneck": True},
    "resnet152": {"depths": (3, 8, 36, 3), "bottleneck": True},
}
MIN_IMAGE_SIZE = 32
# Keras pads its max pooling with zeros and PyTorch with -inf; after a ReLU both give the same.
VARIANTS = {
    "timm": {},
    "torchvision": {},
    "keras": {"stride_first": True, "use_bias": True, "epsilon": 1.001e-5},
    "small": {"small_stem": True},
}
MIN_IMAGE_SIZES = {"small": 16}


class Block(nn.Module):
    """Residual block of convolutions, each with BatchNorm.

    Where the shape changes, the shortcut is a strided 1x1 convolution with BatchNorm.

    Attributes:
      width: channels of the inner convolutions; a bottleneck has four times as many outputs.
      stride: stride of the block.
      bottleneck: 1x1, 3x3 and 1x1 convolutions; otherwise two 3x3 convolutions.
      stride_first: put a bottleneck's stride into its first convolution instead of its 3x3.
      use_bias: whether convolutions have biases, although BatchNorm follows them.
      epsilon: BatchNorm's epsilon.
      drop_path: stochastic depth's drop rate, in [0, 1).
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    width: int
    stride: int
    bottleneck: bool
    stride_first: bool
    use_bias: bool
    epsilon: float
    drop_path: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, update_stats: bool
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns ReLU of shortcut plus branch."""
        width, stride = self.width, self.stride

        def unit(x, size, features, stride, conv_name, norm_name):
            conv = Conv(
                features,
                size,
                stride,
                use_bias=self.use_bias,
                dtype=self.dtype,
                name=conv_name,
            )
            norm = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=norm_name,
            )
            return conv_norm(conv, norm, x)

        if self.bottleneck:
            first, second = (stride, 1) if self.stride_first else (1, stride)
            convs = ((1, width, first), (3, width, second), (1, 4 * width, 1))
        else:
            convs = ((3, width, stride), (3, width, 1))
        y = x
        for i, (size, features, step) in enumerate(convs):
            y = relu(y) if i else y
            y = unit(y, size, features, step, f"conv_{i}", f"norm_{i}")
        if stride > 1 or x.shape[-1] != y.shape[-1]:
            x = unit(x, 1, y.shape[-1], stride, "shortcut", "shortcut_norm")
        y = Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(y, train)
        return relu(x + y)


class ResNet(Backbone):
    """ResNet V1, with basic or bottleneck blocks.

    Attributes:
      depths: blocks per stage.
      bottleneck: block type, see `Block`.
      widths: channels of the inner convolutions per stage.
      stride_first: see `Block`.
      use_bias: whether convolutions have biases.
      epsilon: BatchNorm's epsilon.
      small_stem: whether the stem is a 3x3 convolution with stride 1, without pooling.
    """

    depths: Sequence[int]
    bottleneck: bool
    widths: Sequence[int] = (64, 128, 256, 512)
    stride_first: bool = False
    use_bias: bool = False
    epsilon: float = 1e-5
    small_stem: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features of the last block's channels; see `Backbone`."""
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        size, stride = (3, 1) if self.small_stem else (7, 2)
        stem = Conv(
            self.widths[0],
            size,
            stride=stride,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="stem",
        )
        norm = BatchNorm(
            self.in_stage(STEM, update_stats),
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.epsilon,
            name="stem_norm",
        )
        x = relu(conv_norm(stem, norm, x))
        x = x if self.small_stem else max_pool(x, 3, 2)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                x = maybe_remat(Block, self.remat)(
                    width=width,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    stride_first=self.stride_first,
                    use_bias=self.use_bias,
                    epsilon=self.epsilon,
                    drop_path=rates[sum(self.depths[:stage]) + block],
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x, self.in_stage(stage, train), self.in_stage(stage, update_stats))
            x = self.end_stage(stage, x)
        return spatial_mean(x)
