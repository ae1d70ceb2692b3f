"""DenseNet (Huang et al., "Densely Connected Convolutional Networks", 2017, arXiv:1608.06993).

The published DenseNet-BC sizes, with bottleneck layers and transitions that halve the channels.
The reference implementations are torchvision's and `keras.applications`'.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import STEM, Backbone, drop_path_rates
from bloodjax.models.layers import Conv, Dropout, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm
from bloodjax.ops.elementwise import relu
from bloodjax.ops.pooling import spatial_mean

NETWORKS = {
    "densenet121": {"depths": (6, 12, 24, 16), "growth": 32},
    "densenet161": {"depths": (6, 12, 36, 24), "growth": 48},
    "densenet169": {"depths": (6, 12, 32, 32), "growth": 32},
    "densenet201": {"depths": (6, 12, 48, 32), "growth": 32},
}
MIN_IMAGE_SIZE = 32
VARIANTS = {"timm": {}, "torchvision": {}, "keras": {"epsilon": 1.001e-5}}


class Layer(nn.Module):
    """Bottleneck layer: BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution.

    Attributes:
      growth: output channels; the 1x1 convolution has four times as many.
      epsilon: BatchNorm's epsilon.
      drop_path: drop rate of an example's new channels, in [0, 1).
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    growth: int
    epsilon: float
    drop_path: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, update_stats: bool
    ) -> Float[Array, "b h w growth"]:
        """Returns the new channels only, without the input's."""
        for i, (size, features) in enumerate(((1, 4 * self.growth), (3, self.growth))):
            norm = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=f"norm_{i}",
            )
            x = Conv(features, size, dtype=self.dtype, name=f"conv_{i}")(relu(norm(x)))
        return Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(x, train)


def _avg_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Average pooling over 2x2 windows; an odd last row or column is dropped."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return x.mean(axis=(2, 4))


class DenseNet(Backbone):
    """Dense blocks, each layer of which takes the outputs of all layers before it.

    Attributes:
      depths: layers per dense block.
      growth: channels that each layer adds; the stem has twice as many.
      epsilon: BatchNorm's epsilon.
    """

    depths: Sequence[int]
    growth: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns normalised features; see `Backbone`."""
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        norm = functools.partial(
            BatchNorm, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.epsilon
        )

        def norm_relu(x, name, stage):
            return relu(norm(self.in_stage(stage, update_stats), name=name)(x))

        x = Conv(2 * self.growth, 7, stride=2, dtype=self.dtype, name="stem")(x)
        x = max_pool(norm_relu(x, "stem_norm", STEM), 3, 2)
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = norm_relu(x, f"transition_{stage - 1}_norm", stage)
                half = x.shape[-1] // 2
                x = Conv(half, 1, dtype=self.dtype, name=f"transition_{stage - 1}")(x)
                x = _avg_pool_2x2(x)
            for layer in range(depth):
                new = maybe_remat(Layer, self.remat)(
                    growth=self.growth,
                    epsilon=self.epsilon,
                    drop_path=rates[sum(self.depths[:stage]) + layer],
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_layer_{layer}",
                )(x, self.in_stage(stage, train), self.in_stage(stage, update_stats))
                x = jnp.concatenate((x, new), axis=-1)
            x = self.end_stage(stage, x)
        return spatial_mean(norm_relu(x, "norm", len(self.depths)))
