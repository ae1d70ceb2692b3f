"""DenseNet (Huang et al., "Densely Connected Convolutional Networks", 2017, arXiv:1608.06993).

The published DenseNet-BC sizes: bottlenecks in the layers, transitions that halve the channels.
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
    "densenet_121": {"depths": (6, 12, 24, 16), "growth": 32},
    "densenet_161": {"depths": (6, 12, 36, 24), "growth": 48},
    "densenet_169": {"depths": (6, 12, 32, 32), "growth": 32},
    "densenet_201": {"depths": (6, 12, 48, 32), "growth": 32},
}
# Pixels a side that leave every map at least one.
SMALLEST = 32
# What differs between the sources of weights.
FLAVOURS = {"timm": {}, "torchvision": {}, "keras": {"epsilon": 1.001e-5}}


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution.

    Attributes:
      growth: channels out; the 1x1 convolution gives four times as many.
      epsilon: BatchNorm's.
      drop_path: the rate at which an example's new channels are left out.
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation.
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
        """Returns the new channels alone."""
        for i, (size, features) in enumerate(((1, 4 * self.growth), (3, self.growth))):
            norm = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=f"norm_{i}",
            )
            x = Conv(features, size, dtype=self.dtype, name=f"conv_{i}")(jax.nn.relu(norm(x)))
        return Dropout(self.drop_path, broadcast=True, axis_name=self.axis_name)(x, train)


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Means over squares of 2x2; an odd last row or column is left out."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return x.mean(axis=(2, 4))


class DenseNet(nn.Module):
    """The network without its classifier.

    Attributes:
      depths: layers in each dense block.
      growth: channels that a layer adds; the stem gives twice as many.
      epsilon: BatchNorm's.
      drop_path: stochastic depth's rate at the last layer; it grows linearly from 0 at the first.
      remat: whether layers keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    depths: Sequence[int]
    growth: int
    epsilon: float = 1e-5
    drop_path: float = 0.0
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
          update_stats: BatchNorm uses the batch's statistics and updates the running ones.
        """
        layers = sum(self.depths)
        rates = [self.drop_path * i / max(layers - 1, 1) for i in range(layers)]

        def norm_relu(x, name):
            norm = BatchNorm(
                update_stats,
                axis_name=self.axis_name,
                dtype=self.dtype,
                epsilon=self.epsilon,
                name=name,
            )
            return jax.nn.relu(norm(x))

        x = Conv(2 * self.growth, 7, stride=2, dtype=self.dtype, name="stem")(x)
        x = max_pool(norm_relu(x, "stem_norm"), 3, 2)
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = norm_relu(x, f"transition_{stage - 1}_norm")
                half = x.shape[-1] // 2
                x = Conv(half, 1, dtype=self.dtype, name=f"transition_{stage - 1}")(x)
                x = _halve(x)
            for layer in range(depth):
                new = maybe_remat(Layer, self.remat)(
                    growth=self.growth,
                    epsilon=self.epsilon,
                    drop_path=rates[sum(self.depths[:stage]) + layer],
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"stage_{stage}_layer_{layer}",
                )(x, train, update_stats)
                x = jnp.concatenate((x, new), axis=-1)
            self.sow("intermediates", f"stage_{stage}", x)
        return norm_relu(x, "norm").mean(axis=(1, 2))
