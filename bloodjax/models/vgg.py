"""VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556): 11, 13, 16 and 19 layers.

The "_bn" networks have BatchNorm after every convolution, as torchvision introduced them.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Conv, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm

# Convolutions in each of the five stages, by the number of layers with weights.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

NETWORKS = {
    f"vgg_{layers}{'_bn' if norm else ''}": {"depths": depths, "norm": norm}
    for layers, depths in DEPTHS.items()
    for norm in (False, True)
}
# Pixels a side that leave every map at least one.
SMALLEST = 32
# What differs between the sources of weights.
FLAVOURS = {"torchvision": {}, "timm": {"sliding": True}, "keras": {}}

_WINDOW = 7  # the side of the map that the dense layers see, 224 / 32


def _averages(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Row i averages the positions from floor(i * size / out) to ceil((i + 1) * size / out)."""
    weights = np.zeros((out, size), np.float32)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        weights[i, start:end] = 1.0 / (end - start)
    return weights


def adaptive_avg_pool(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Averages to a map of `size`, from a smaller or a larger one.

    The windows are those of PyTorch's `adaptive_avg_pool2d`: they may overlap, and where the map
    is smaller than `size` they repeat.
    """
    for axis, out in zip((1, 2), size, strict=True):
        if x.shape[axis] != out:
            weights = jnp.asarray(_averages(x.shape[axis], out), x.dtype)
            pooled = jnp.tensordot(x, weights, axes=((axis,), (1,)), precision="highest")
            x = jnp.moveaxis(pooled, -1, axis)
    return x


class VGG(nn.Module):
    """The network without its classifier.

    Sows the map before each of the five max pools, after its ReLU.

    Attributes:
      depths: convolutions in each stage.
      norm: whether BatchNorm follows each convolution.
      widths: channels of each stage.
      top: whether the features go through the two dense layers of 4096 of the ImageNet network;
        otherwise they are the averages of the last map.
      sliding: where the last map is larger than 7x7, the dense layers see each of its 7x7 windows,
        and the features are averages over these; otherwise the map is averaged to 7x7 first.
      drop_path: without effect, as there are no residual branches.
      remat: whether stages keep their inputs alone for the gradient (`layers.maybe_remat`).
      axis_name: pmap's axis, or None under jit.
      dtype: of the computation; parameters stay float32.
    """

    depths: Sequence[int]
    norm: bool = False
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    top: bool = False
    sliding: bool = False
    drop_path: float = 0.0
    remat: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features: 4096 with `top`, otherwise as many as the last stage's channels.

        Args:
          x: normalised images; 32 pixels a side at least.
          train: without effect.
          update_stats: BatchNorm uses and updates the batch's statistics.
        """
        del train
        x = x.astype(self.dtype)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            convolve = maybe_remat(VGG._stage, self.remat)
            x = convolve(self, x, stage, depth, width, update_stats)
            self.sow("intermediates", f"stage_{stage}", x)
            x = max_pool(x, 2, 2, "valid")
        return self._top(x) if self.top else x.mean(axis=(1, 2))

    def _stage(self, x, stage, depth, width, update_stats):
        for i in range(depth):
            name = f"stage_{stage}_conv_{i}"
            x = Conv(width, 3, use_bias=True, dtype=self.dtype, name=name)(x)
            if self.norm:
                x = BatchNorm(
                    update_stats,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    epsilon=1e-5,
                    name=f"{name}_norm",
                )(x)
            x = jax.nn.relu(x)
        return x

    def _top(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 4096"]:
        """The dense layers, over one window or several."""
        floor = x.shape[1:3] if self.sliding else (_WINDOW, _WINDOW)
        rows, columns = (max(_WINDOW, n) for n in floor)
        x = adaptive_avg_pool(x, (rows, columns))
        windows = [
            x[:, i : i + _WINDOW, j : j + _WINDOW].reshape(x.shape[0], -1)
            for i in range(rows - _WINDOW + 1)
            for j in range(columns - _WINDOW + 1)
        ]
        x = jnp.stack(windows, axis=1)
        for i in range(2):
            dense = nn.Dense(
                4096,
                dtype=self.dtype,
                kernel_init=nn.initializers.truncated_normal(0.01),
                name=f"top_{i}",
            )
            x = jax.nn.relu(dense(x))
        return x.mean(axis=1)
