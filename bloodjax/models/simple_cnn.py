"""A plain convolutional network: the baseline to train from scratch on small images.

In the manner of VGG (Simonyan and Zisserman, 2014) with BatchNorm (Ioffe and Szegedy, 2015): stages
of 3x3 convolutions, each stage halving the map, then the average over what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Dropout, maybe_remat
from bloodjax.models.norms import BatchNorm

NETWORKS = {"simple_cnn": {}}
# Pixels a side that leave every map at least one.
SMALLEST = 16
FLAVOURS = {"bloodjax": {}}


class SimpleCNN(nn.Module):
    """The network without its classifier.

    Attributes:
      depths: convolutions in each stage; the first of a stage has stride 2.
      widths: channels of each stage.
      drop_path: part of the pooled features that dropout zeroes (there are no residual branches).
      remat: whether stages keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    depths: Sequence[int] = (1, 2, 2, 2)
    widths: Sequence[int] = (32, 64, 128, 256)
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
          x: normalised images, 2 pixels a side and stage at least.
          train: dropout is on.
          update_stats: BatchNorm uses and updates the batch's statistics.
        """
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            convolve = maybe_remat(SimpleCNN._stage, self.remat)
            x = convolve(self, x, stage, depth, width, update_stats)
            self.sow("intermediates", f"stage_{stage}", x)
        x = x.mean(axis=(1, 2))
        return Dropout(self.drop_path, axis_name=self.axis_name)(x, train)

    def _stage(self, x, stage, depth, width, update_stats):
        for layer in range(depth):
            stride = 2 if layer == 0 else 1
            name = f"stage_{stage}_conv_{layer}"
            x = nn.Conv(
                width,
                (3, 3),
                strides=stride,
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=name,
            )(x)
            norm = BatchNorm(
                update_stats, axis_name=self.axis_name, dtype=self.dtype, name=f"{name}_norm"
            )
            x = jax.nn.relu(norm(x))
        return x
