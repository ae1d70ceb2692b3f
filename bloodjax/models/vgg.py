"""VGG-11, 13, 16 and 19 (Simonyan and Zisserman, 2014, arXiv:1409.1556).

The "_bn" networks, which torchvision introduced, have BatchNorm after every convolution. The
reference implementations are torchvision's, timm's and `keras.applications`'.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bloodjax.models.backbone import Backbone
from bloodjax.models.layers import Conv, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm, conv_norm
from bloodjax.ops.conv import NARROW, narrow_stage
from bloodjax.ops.elementwise import relu
from bloodjax.ops.pooling import spatial_mean

# Number of layers with weights -> convolutions in each of the five stages.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

NETWORKS = {
    f"vgg{layers}{'_bn' if norm else ''}": {"depths": depths, "norm": norm}
    for layers, depths in DEPTHS.items()
    for norm in (False, True)
}
MIN_IMAGE_SIZE = 32
VARIANTS = {"torchvision": {}, "timm": {"sliding": True}, "keras": {}}

_WINDOW = 7  # side of the dense layers' input map: 224 / 32


def _pooling_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Matrix that averages windows [floor(i * size / out), ceil((i + 1) * size / out))."""
    weights = np.zeros((out, size), np.float32)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        weights[i, start:end] = 1.0 / (end - start)
    return weights


def adaptive_avg_pool(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Average pooling to an output of `size` (height, width), as PyTorch's `adaptive_avg_pool2d`.

    Windows overlap where the input's side is no multiple of the output's, and repeat where the
    input is smaller.
    """
    for axis, out in zip((1, 2), size, strict=True):
        if x.shape[axis] != out:
            weights = jnp.asarray(_pooling_matrix(x.shape[axis], out), x.dtype)
            pooled = jnp.tensordot(x, weights, axes=((axis,), (1,)), precision="highest")
            x = jnp.moveaxis(pooled, -1, axis)
    return x


class VGG(Backbone):
    """VGG. Has no residual branches, so `drop_path` and `train` have no effect.

    It has five stages, which end before the max pools.

    Attributes:
      depths: convolutions per stage.
      norm: whether BatchNorm follows each convolution.
      widths: channels per stage.
      top: include the ImageNet network's two dense layers of 4096; otherwise the features are the
        global average of the last map.
      sliding: on a last map larger than 7x7, apply the dense layers to every 7x7 window and average
        the results, as timm does; otherwise pool the map to 7x7 first, as torchvision does.
    """

    depths: Sequence[int]
    norm: bool = False
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    top: bool = False
    sliding: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features of 4096 channels with `top`, else `widths[-1]`; see `Backbone`."""
        del train
        x = x.astype(self.dtype)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage == 0 and self._is_narrow(x, width):
                x = self._narrow_stage(x, depth)
                continue
            run_stage = maybe_remat(VGG._stage, self.remat)
            updates = self.in_stage(stage, update_stats)
            x = run_stage(self, x, stage, depth, width, updates)
            x = self.end_stage(stage, x)
            x = max_pool(x, 2, 2, "valid")
        return self._top(x) if self.top else spatial_mean(x)

    def _is_narrow(self, x, width) -> bool:
        """Whether the first stage may be `narrow_stage`; float32 keeps its form and rounding."""
        plain = jnp.dtype(self.dtype) == jnp.bfloat16 and not (self.norm or self.remat)
        wanted = self.is_initializing() or self.is_mutable_collection("intermediates")
        even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
        unusual = wanted or self.frozen_stages > 0  # what `end_stage` does is needed
        return plain and even and width <= NARROW and not unusual

    def _narrow_stage(self, x, depth):
        names = [f"stage_0_conv_{i}" for i in range(depth)]
        return narrow_stage(x, [self.get_variable("params", name) for name in names], names)

    def _stage(self, x, stage, depth, width, update_stats):
        for i in range(depth):
            name = f"stage_{stage}_conv_{i}"
            conv = Conv(width, 3, use_bias=True, dtype=self.dtype, name=name)
            if self.norm:
                norm = BatchNorm(
                    update_stats,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    epsilon=1e-5,
                    name=f"{name}_norm",
                )
                x = conv_norm(conv, norm, x)
            else:
                x = conv(x)
            x = relu(x)
        return x

    def _top(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 4096"]:
        """Applies the dense layers to each 7x7 window, and averages over windows."""
        size = x.shape[1:3] if self.sliding else (_WINDOW, _WINDOW)
        rows, columns = (max(_WINDOW, n) for n in size)
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
            x = relu(dense(x))
        return x.mean(axis=1)
