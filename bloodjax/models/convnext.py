"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022, arXiv:2201.03545) and ConvNeXt V2.

The reference implementation is timm's, which adds the sizes atto to nano. ConvNeXt V2 (Woo et al.,
2023, arXiv:2301.00808) replaces the layer scale by global response normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import Backbone, drop_path_rates
from bloodjax.models.layers import Dense, DepthwiseConv, Dropout, PatchConv, maybe_remat
from bloodjax.models.norms import LayerNorm, norm_dense
from bloodjax.ops.elementwise import gelu, precise
from bloodjax.ops.pooling import spatial_mean
from bloodjax.ops.residual_mlp import residual_mlp

SIZES = {
    # name: (blocks per stage, channels per stage)
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
MIN_IMAGE_SIZE = 32
VARIANTS = {"timm": {}, "torchvision": {}, "keras": {}}

_INIT = nn.initializers.truncated_normal(0.02)


class GlobalResponseNorm(nn.Module):
    """Global response normalisation (Woo et al., 2023, arXiv:2301.00808, section 3.2).

    Scales each channel by its L2 norm over the map, relative to the mean norm of all channels.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds the normalised map, scaled and shifted per channel, to the input."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.zeros_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        # Sums over all pixels of a map need float32.
        squares = jnp.square(precise(x))
        squares = squares.sum(axis=(1, 2), keepdims=True)
        # The square root's gradient at 0 is infinite; PyTorch's norm has gradient 0 there.
        positive = squares > 0
        norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
        norm = norm / (norm.mean(axis=-1, keepdims=True) + 1e-6)
        scale, bias, norm = (a.astype(x.dtype) for a in (scale, bias, norm))
        return x + (scale[None, None, None] * (x * norm) + bias[None, None, None])


class Block(nn.Module):
    """Residual block: depthwise 7x7, LayerNorm, two-layer MLP, layer scale.

    Attributes:
      drop_path: stochastic depth's drop rate, in [0, 1).
      layer_scale: initial value of the branch's per-channel scale.
      v2: use global response normalisation inside the MLP instead of a layer scale.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    drop_path: float
    layer_scale: float
    v2: bool
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Returns input plus branch; `train` enables stochastic depth."""
        channels = x.shape[-1]
        depthwise = DepthwiseConv(7, dtype=self.dtype, kernel_init=_INIT, name="depthwise")
        norm = LayerNorm(dtype=self.dtype, name="norm")
        expand = Dense(4 * channels, self.dtype, _INIT, name="expand")
        project = Dense(channels, self.dtype, _INIT, name="project")
        drop_path = Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)
        scale = None
        if not self.v2:
            scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        if not self.v2 and norm.foldable(x):
            return residual_mlp(
                *depthwise.branch(x),
                *expand.weights(channels, norm.affine),
                *project.weights(4 * channels, scale=scale),
                drop_path.factors(len(x), train),
                norm.epsilon,
            )
        y = gelu(norm_dense(norm, expand, depthwise(x)))
        if self.v2:
            y = GlobalResponseNorm(name="response_norm")(y)
        return x + drop_path(project(y, scale=scale), train)


class ConvNeXt(Backbone):
    """ConvNeXt V1 or V2. Has no BatchNorm, so `update_stats` has no effect.

    Attributes:
      depths: blocks per stage.
      widths: channels per stage.
      layer_scale: initial value of the residual branches' scales (V1).
      v2: build ConvNeXt V2's blocks.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    layer_scale: float = 1e-6
    v2: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns normalised features of `widths[-1]` channels; see `Backbone`."""
        del update_stats
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        x = PatchConv(self.widths[0], 4, self.dtype, _INIT, name="stem")(x)
        x = LayerNorm(dtype=self.dtype, name="stem_norm")(x)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                norm = LayerNorm(dtype=self.dtype, name=f"downsample_{stage}_norm")
                downsample = PatchConv(width, 2, self.dtype, _INIT, name=f"downsample_{stage}")
                x = norm_dense(norm, downsample, x)
            for block in range(depth):
                x = maybe_remat(Block, self.remat)(
                    drop_path=rates[sum(self.depths[:stage]) + block],
                    layer_scale=self.layer_scale,
                    v2=self.v2,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x, self.in_stage(stage, train))
            x = self.end_stage(stage, x)
        return LayerNorm(dtype=self.dtype, name="norm")(spatial_mean(x))
