"""EfficientNet B0 to B7 (Tan and Le, 2019, arXiv:1905.11946), Lite0 to Lite4, and V2 S, M and L.

The Lite networks (Google's TPU repository, 2020) leave squeeze-and-excitation out, clip at 6, and
keep the stem, the first and the last stage unscaled; V2 (Tan and Le, 2021, arXiv:2104.00298) starts
with blocks whose first two convolutions are fused into one.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Conv, DepthwiseConv, Dropout, maybe_remat
from bloodjax.models.norms import BatchNorm

_ACTIVATIONS = {"silu": jax.nn.silu, "relu6": jax.nn.relu6}
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1))


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one kind; the first has the stride.

    Attributes:
      blocks: how many.
      channels: out of each block.
      expand: the hidden channels as a multiple of the block's input.
      size: of the kernel.
      stride: of the first block.
      fused: one dense convolution in place of an expanding and a depthwise one.
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
# (width, depth) as multiples of B0's.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6))
_SCALES += ((2.0, 3.1),)
# Of each V2 network, its stages as (blocks, channels): three fused, then the others.
_V2 = {
    "s": ((2, 24), (4, 48), (4, 64), (6, 128), (9, 160), (15, 256)),
    "m": ((3, 24), (5, 48), (5, 80), (7, 160), (14, 176), (18, 304), (5, 512)),
    "l": ((4, 32), (7, 64), (7, 96), (10, 192), (19, 224), (25, 384), (7, 640)),
}
_V2_EXPAND, _V2_STRIDES = (1, 4, 4, 4, 6, 6, 6), (1, 2, 2, 2, 1, 2, 1)


def _round(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
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
# Pixels a side that leave every map at least one.
SMALLEST = 32
# "tf" is Google's own training, which timm's tf_efficientnet_* and Keras's applications carry on.
FLAVOURS = {
    "tf": {"padding": "same", "norm_epsilon": 1e-3},
    "timm": {"padding": "symmetric", "norm_epsilon": 1e-5},
    # torchvision's B5 to B7 and V2.
    "torchvision": {"padding": "symmetric", "norm_epsilon": 1e-3},
}


class Block(nn.Module):
    """An inverted residual block (MBConv), its fused form, or a depthwise separable convolution.

    Attributes:
      stage: what its stage's blocks share.
      stride: 1 or 2.
      drop_path: the rate at which stochastic depth leaves the branch out.
      squeeze: whether it has squeeze-and-excitation, if it is not fused.
      activation: a key of `_ACTIVATIONS`.
      padding: a kind of `layers.pads`.
      norm_epsilon: of every BatchNorm.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation.
    """

    stage: Stage
    stride: int
    drop_path: float
    squeeze: bool
    activation: str
    padding: str
    norm_epsilon: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, update_stats: bool
    ) -> Float[Array, "b h2 w2 d"]:
        """Convolves; where the shape stays, the input is added."""
        stage, act = self.stage, _ACTIVATIONS[self.activation]

        def norm(y, name):
            layer = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.norm_epsilon,
                name=f"{name}_norm",
            )
            return layer(y)

        def conv(y, features, size, stride, name):
            layer = Conv(features, size, stride, self.padding, False, self.dtype, _INIT, name=name)
            return norm(layer(y), name)

        hidden, y = stage.expand * x.shape[-1], x
        if stage.fused and stage.expand == 1:
            y = act(conv(y, stage.channels, stage.size, self.stride, "project"))
        else:
            if stage.fused:
                y = act(conv(y, hidden, stage.size, self.stride, "expand"))
            else:
                if stage.expand != 1:
                    y = act(conv(y, hidden, 1, 1, "expand"))
                depthwise = DepthwiseConv(
                    stage.size,
                    self.stride,
                    self.dtype,
                    _DEPTHWISE_INIT,
                    self.padding,
                    use_bias=False,
                    name="depthwise",
                )
                y = act(norm(depthwise(y), "depthwise"))
                if self.squeeze:
                    y = self._excite(y, x.shape[-1] // 4, act)
            y = conv(y, stage.channels, 1, 1, "project")
        if x.shape != y.shape:
            return y
        return x + Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(y, train)

    def _excite(self, y, squeezed, act):
        """Squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507)."""
        scale = y.mean(axis=(1, 2))
        scale = act(nn.Dense(squeezed, dtype=self.dtype, name="se_reduce")(scale))
        scale = nn.Dense(y.shape[-1], dtype=self.dtype, name="se_expand")(scale)
        return y * jax.nn.sigmoid(scale)[:, None, None]


class EfficientNet(nn.Module):
    """The network without its classifier.

    Attributes:
      stages: the kinds of blocks, in order.
      stem: channels of the first convolution.
      features: channels of the last one.
      activation: "silu" or "relu6".
      squeeze: whether blocks that are not fused have squeeze-and-excitation.
      padding: a kind of `layers.pads`.
      norm_epsilon: of every BatchNorm.
      drop_path: stochastic depth's rate after the last block; it grows linearly from 0.
      remat: whether blocks keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    stages: tuple[Stage, ...]
    stem: int
    features: int
    activation: str = "silu"
    squeeze: bool = True
    padding: str = "same"
    norm_epsilon: float = 1e-3
    drop_path: float = 0.0
    remat: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns pooled features; sows `stage_0`, ..., the map at the end of each stage.

        Args:
          x: normalised images, 32 pixels a side at least.
          train: stochastic depth is on.
          update_stats: BatchNorm uses and updates the batch's statistics.
        """
        x = self._conv(x, self.stem, 3, 2, "stem", update_stats)
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
                    norm_epsilon=self.norm_epsilon,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{i}_block_{block}",
                )(x, train, update_stats)
                done += 1
            self.sow("intermediates", f"stage_{i}", x)
        return self._conv(x, self.features, 1, 1, "last", update_stats).mean(axis=(1, 2))

    def _conv(self, x, features, size, stride, name, update_stats):
        conv = Conv(features, size, stride, self.padding, False, self.dtype, _INIT, name=name)
        norm = BatchNorm(
            update_stats,
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=self.norm_epsilon,
            name=f"{name}_norm",
        )
        return _ACTIVATIONS[self.activation](norm(conv(x)))
