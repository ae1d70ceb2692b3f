"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385).

Sizes 18 and 34 have blocks of two 3x3 convolutions; 50, 101 and 152 have bottlenecks of 1x1, 3x3
and 1x1. PyTorch's weights halve the map in a bottleneck's 3x3 convolution, Keras's in its first
1x1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Conv, Dropout, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm

NETWORKS = {
    "resnet_18": {"depths": (2, 2, 2, 2), "bottleneck": False},
    "resnet_34": {"depths": (3, 4, 6, 3), "bottleneck": False},
    "resnet_50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet_101": {"depths": (3, 4, 23, 3), "bottleneck": True},
    "resnet_152": {"depths": (3, 8, 36, 3), "bottleneck": True},
}
# Pixels a side that leave every map at least one.
SMALLEST = 32
# What differs between the sources of weights. Keras pads with zeros before its max pooling; behind
# a ReLU that is what padding below every value gives.
FLAVOURS = {
    "timm": {},
    "torchvision": {},
    "keras": {"stride_first": True, "use_bias": True, "epsilon": 1.001e-5},
}


class Block(nn.Module):
    """Convolutions, each with BatchNorm, on a residual branch.

    Where the shape changes, a strided 1x1 convolution with BatchNorm stands in for the identity.

    Attributes:
      width: channels between the convolutions; a bottleneck gives four times as many.
      stride: of the block as a whole.
      bottleneck: 1x1, 3x3 and 1x1 convolutions; otherwise two of 3x3.
      stride_first: a bottleneck's stride is in its first convolution, not in its 3x3.
      use_bias: whether convolutions have biases in spite of the BatchNorm behind them.
      epsilon: BatchNorm's.
      drop_path: the rate at which stochastic depth leaves the branch out.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation.
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
        """Adds the branch to its input, or to the input's projection."""
        width, stride = self.width, self.stride

        def conv_norm(x, size, features, stride, conv_name, norm_name):
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
            return norm(conv(x))

        if self.bottleneck:
            first, second = (stride, 1) if self.stride_first else (1, stride)
            convs = ((1, width, first), (3, width, second), (1, 4 * width, 1))
        else:
            convs = ((3, width, stride), (3, width, 1))
        y = x
        for i, (size, features, step) in enumerate(convs):
            y = jax.nn.relu(y) if i else y
            y = conv_norm(y, size, features, step, f"conv_{i}", f"norm_{i}")
        if stride > 1 or x.shape[-1] != y.shape[-1]:
            x = conv_norm(x, 1, y.shape[-1], stride, "shortcut", "shortcut_norm")
        y = Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(y, train)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """The network without its classifier.

    Attributes:
      depths: blocks in each stage.
      bottleneck: which kind of block, see `Block`.
      widths: channels between the convolutions of each stage's blocks.
      stride_first: see `Block`.
      use_bias: whether convolutions have biases.
      epsilon: BatchNorm's.
      drop_path: stochastic depth's rate at the last block; it grows linearly from 0 at the first.
      remat: whether blocks keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    depths: Sequence[int]
    bottleneck: bool
    widths: Sequence[int] = (64, 128, 256, 512)
    stride_first: bool = False
    use_bias: bool = False
    epsilon: float = 1e-5
    drop_path: float = 0.0
    remat: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns pooled features.

        Args:
          x: normalised images; 32 pixels a side at least.
          train: stochastic depth is on.
          update_stats: BatchNorm uses the batch's statistics and updates the running ones.
        """
        blocks = sum(self.depths)
        rates = [self.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        x = Conv(
            self.widths[0], 7, stride=2, use_bias=self.use_bias, dtype=self.dtype, name="stem"
        )(x)
        x = BatchNorm(
            update_stats,
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.epsilon,
            name="stem_norm",
        )(x)
        x = max_pool(jax.nn.relu(x), 3, 2)
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
                )(x, train, update_stats)
            self.sow("intermediates", f"stage_{stage}", x)
        return x.mean(axis=(1, 2))
