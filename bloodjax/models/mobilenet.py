"""MobileNet, the first version (Howard et al., 2017, arXiv:1704.04861), in its four widths."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Conv, DepthwiseConv, maybe_remat
from bloodjax.models.norms import BatchNorm

NETWORKS = {
    f"mobilenet_v1_{percent:03d}": {"multiplier": percent / 100} for percent in (100, 75, 50, 25)
}
# Pixels a side that leave every map at least one.
SMALLEST = 32
# What differs between the sources of weights.
FLAVOURS = {
    "keras": {},
    "timm": {"stem_padding": "symmetric", "padding": "symmetric", "epsilon": 1e-5},
}

# Blocks in each stage; all but the first stage begin with a stride of 2.
DEPTHS = (1, 2, 2, 6, 2)
_WIDTHS = (64, 128, 256, 512, 1024)


class Block(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU6.

    Attributes:
      features: channels out.
      stride: of the depthwise convolution.
      padding: a kind of `layers.pads`.
      epsilon: of BatchNorm.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation.
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
        """Convolves twice."""
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
            x = jax.nn.relu6(norm(conv(x)))
        return x


class MobileNet(nn.Module):
    """The network without its classifier.

    Sows the map after the last block of each of the five resolutions.

    Attributes:
      multiplier: of every layer's channels.
      depths: blocks in each stage.
      widths: channels of each stage, before `multiplier`.
      stem_padding: a kind of `layers.pads`, for the first convolution.
      padding: a kind of `layers.pads`, for the depthwise convolutions.
      epsilon: of BatchNorm.
      drop_path: without effect, as there are no residual branches.
      remat: whether blocks keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    multiplier: float = 1.0
    depths: Sequence[int] = DEPTHS
    widths: Sequence[int] = _WIDTHS
    stem_padding: str = "same"
    padding: str = "after"
    epsilon: float = 1e-3
    drop_path: float = 0.0
    remat: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns the averages of the last map, 1024 times `multiplier`.

        Args:
          x: normalised images; 32 pixels a side at least.
          train: without effect.
          update_stats: BatchNorm uses and updates the batch's statistics.
        """
        del train
        x = Conv(int(32 * self.multiplier), 3, 2, self.stem_padding, dtype=self.dtype, name="stem")(
            x
        )
        x = BatchNorm(
            update_stats,
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.epsilon,
            name="stem_norm",
        )(x)
        x = jax.nn.relu6(x)
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
                )(x, update_stats)
            self.sow("intermediates", f"stage_{stage}", x)
        return x.mean(axis=(1, 2))
