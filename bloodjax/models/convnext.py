"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022, arXiv:2201.03545), all published sizes.

Follows timm's models, whose smaller sizes (atto to nano) are Wightman's. V2 (Woo et al., 2023,
arXiv:2301.00808) normalises each channel's global response in place of the layer scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Dense, DepthwiseConv, Dropout, PatchConv, maybe_remat
from bloodjax.models.norms import LayerNorm
from bloodjax.ops.elementwise import gelu, precise

SIZES = {
    # name: (blocks a stage, channels a stage)
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}

NETWORKS = {
    f"convnext{version}_{size}": {"depths": depths, "widths": widths, "v2": version == "v2"}
    for version, unpublished in (("", "huge"), ("v2", "xlarge"))
    for size, (depths, widths) in SIZES.items()
    if size != unpublished
}
# Pixels a side that leave every map at least one.
SMALLEST = 32
# What differs between the sources of weights.
FLAVOURS = {"timm": {}, "torchvision": {}, "keras": {}}

_INIT = nn.initializers.truncated_normal(0.02)


class ResponseNorm(nn.Module):
    """Global response normalisation: each channel by its norm over the map, beside the others'."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds the normalised map, scaled and shifted, to its input."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.zeros_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        # Sums over a whole map stay in float32.
        squares = jnp.square(precise(x))
        squares = squares.sum(axis=(1, 2), keepdims=True)
        # A channel that is 0 all over has norm 0 and, as in PyTorch, gradient 0 (not sqrt's).
        positive = squares > 0
        norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
        norm = norm / (norm.mean(axis=-1, keepdims=True) + 1e-6)
        scale, bias, norm = (a.astype(x.dtype) for a in (scale, bias, norm))
        return x + (scale[None, None, None] * (x * norm) + bias[None, None, None])


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, a two-layer perceptron, layer scale, on a residual branch.

    Attributes:
      drop_path: the rate at which stochastic depth leaves the branch out.
      layer_scale: initial value of the branch's per-channel scale.
      v2: normalise the global response inside the perceptron; there is no layer scale.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation.
    """

    drop_path: float
    layer_scale: float
    v2: bool
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Adds the branch to its input."""
        channels = x.shape[-1]
        y = DepthwiseConv(7, dtype=self.dtype, kernel_init=_INIT, name="depthwise")(x)
        y = LayerNorm(dtype=self.dtype, name="norm")(y)
        y = Dense(4 * channels, self.dtype, _INIT, name="expand")(y)
        y = gelu(y)
        if self.v2:
            y = ResponseNorm(name="response_norm")(y)
        y = Dense(channels, self.dtype, _INIT, name="project")(y)
        if not self.v2:
            scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
            y = y * scale.astype(self.dtype)[None, None, None]
        return x + Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(y, train)


class ConvNeXt(nn.Module):
    """The network without its classifier.

    Attributes:
      depths: blocks in each stage.
      widths: channels of each stage.
      drop_path: stochastic depth's rate at the last block; it grows linearly from 0 at the first.
      layer_scale: initial value of the residual branches' scales.
      v2: blocks of ConvNeXt V2.
      remat: whether blocks keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    v2: bool = False
    remat: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns pooled and normalised features.

        Args:
          x: normalised images; 32 pixels a side at least.
          train: stochastic depth is on.
          update_stats: without effect, as there is no BatchNorm here.
        """
        del update_stats
        rates = [self.drop_path * i / max(sum(self.depths) - 1, 1) for i in range(sum(self.depths))]
        x = PatchConv(self.widths[0], 4, self.dtype, _INIT, name="stem")(x)
        x = LayerNorm(dtype=self.dtype, name="stem_norm")(x)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                x = LayerNorm(dtype=self.dtype, name=f"downsample_{stage}_norm")(x)
                x = PatchConv(width, 2, self.dtype, _INIT, name=f"downsample_{stage}")(x)
            for block in range(depth):
                x = maybe_remat(Block, self.remat)(
                    drop_path=rates[sum(self.depths[:stage]) + block],
                    layer_scale=self.layer_scale,
                    v2=self.v2,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
            self.sow("intermediates", f"stage_{stage}", x)
        return LayerNorm(dtype=self.dtype, name="norm")(x.mean(axis=(1, 2)))
