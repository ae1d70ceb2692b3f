"""BatchNorm and LayerNorm with as few passes over a map as possible."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.ops.elementwise import layer_norm, normalise, precise
from bloodjax.ops.map_norm import map_norm


def _in_bfloat16(module: nn.Module) -> bool:
    return jnp.dtype(module.dtype) == jnp.bfloat16


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167) over all axes but the last.

    Its variables are those of Flax's BatchNorm: parameters `scale` and `bias`, running averages
    `mean` and `var` of the batch's mean and biased variance. Flax subtracts the mean first, and
    stores the difference, which is as large as the map, for the backward pass. Here mean and
    variance are combined into one factor and one offset per channel, so that only the input is
    stored and the operations after it fuse with it.

    Attributes:
      update: use the batch's statistics and, if the collection "batch_stats" is mutable, update the
        running averages. Otherwise use the running averages.
      momentum: decay of the running averages, in [0, 1].
      epsilon: added to the variance.
      use_scale: whether there is a learnable scale.
      axis_name: pmap axis name over which statistics are averaged; None under jit, where the batch
        is global.
      dtype: output dtype; statistics are at least float32.
    """

    update: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: Float[Array, "batch ... channels"]) -> Float[Array, "batch ... channels"]:
        """Returns the normalised input."""
        x = precise(x)
        statistics = self._statistics(x) if self.update else None
        factor, offset = self.affine(x.shape[-1], x.dtype, statistics)
        every = (None,) * (x.ndim - 1)
        return (x * factor[every] + offset[every]).astype(self.dtype)

    @nn.compact
    def affine(
        self,
        channels: int,
        dtype: DTypeLike = jnp.float32,
        statistics: tuple[Float[Array, " channels"], Float[Array, " channels"]] | None = None,
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        """Returns the factor and the offset per channel that normalise a map.

        Args:
          channels: number of channels.
          dtype: dtype of the results, float32 at least.
          statistics: mean and variance of the batch, which update the running averages; by default
            the running averages are used.
        """
        if self.folded:
            if self.update:
                raise ValueError("a folded BatchNorm has no statistics to update")
            return self._folded_affine(channels, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        used = mean.value, var.value
        if statistics is not None:
            used = statistics
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                for running, now in zip((mean, var), used, strict=True):
                    kept = self.momentum * running.value
                    running.value = kept + (1.0 - self.momentum) * now.astype(kept.dtype)
        centre, spread = (value.astype(dtype) for value in used)
        factor = lax.rsqrt(spread + self.epsilon)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones_init(), (channels,))
            factor = factor * scale.astype(dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,)).astype(dtype)
        return factor, bias - centre * factor

    @property
    def foldable(self) -> bool:
        """Whether the factor goes into the kernel of the convolution before, see `conv_norm`."""
        in_bfloat16 = _in_bfloat16(self) and not self.update and not self.is_initializing()
        return in_bfloat16 or self.folded

    @property
    def folded(self) -> bool:
        """Whether its variables are those that `folding.fold` leaves it, "offset" and "factor"."""
        return self.has_variable("params", "offset")

    def _folded_affine(self, channels, dtype):
        if self.has_variable("params", "factor"):
            factor = self.get_variable("params", "factor").astype(dtype)
        else:
            factor = jnp.ones((channels,), dtype)
        return factor, self.get_variable("params", "offset").astype(dtype)

    def _statistics(self, x):
        """Per-channel mean and biased variance of the batch."""
        axes = tuple(range(x.ndim - 1))
        both = jnp.stack((x.mean(axes), jnp.square(x).mean(axes)))
        mean, square = both if self.axis_name is None else lax.pmean(both, self.axis_name)
        # Rounding can make the difference negative.
        return mean, jnp.maximum(square - jnp.square(mean), jnp.zeros((), x.dtype))


def conv_norm(
    conv: Callable[..., Float[Array, "b h2 w2 features"]],
    norm: BatchNorm,
    x: Float[Array, "b h w c"],
) -> Float[Array, "b h2 w2 features"]:
    """Returns `norm(conv(x))`.

    With frozen statistics in bfloat16, the kernel is multiplied by the norm's factor before it is
    rounded, and the offset is added to the convolution. The factor's multiplication of the map and
    of its gradient falls away. In a residual block the branch's gradient and the shortcut's are
    then the same map, which is written once. Float32 keeps the order of the two operations, and
    with it the rounding.

    Args:
      conv: `layers.Conv` or `layers.DepthwiseConv`.
      norm: the norm of its output.
      x: input.
    """
    return conv(x, norm.affine) if norm.foldable else norm(conv(x))


class LayerNorm(nn.Module):
    """Layer normalisation over the channels; see `ops.elementwise.layer_norm`.

    Attributes:
      epsilon: added to the variance.
      dtype: output dtype; the computation is in float32 at least.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        """Returns the normalised input."""
        scale, bias = self.affine(x.shape[-1])
        wide = precise(x)
        scale, bias = (a.astype(wide.dtype) for a in (scale, bias))
        x = x if x.dtype == self.dtype else wide
        if x.ndim == 4 and x.dtype == jnp.bfloat16:
            return map_norm(x, scale, bias, self.epsilon)
        return layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)

    @nn.compact
    def affine(self, channels: int) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        """Returns scale and bias."""
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        return scale, self.param("bias", nn.initializers.zeros_init(), (channels,))

    def foldable(self, x: Float[Array, "... channels"]) -> bool:
        """Whether scale and bias go into the layer that follows, see `norm_dense`."""
        return _in_bfloat16(self) and x.dtype == jnp.bfloat16 and not self.is_initializing()


def norm_dense(
    norm: LayerNorm,
    dense: Callable[..., Float[Array, "... features"]],
    x: Float[Array, "... channels"],
) -> Float[Array, "... features"]:
    """Returns `dense(norm(x))`.

    In bfloat16, the norm's scale and bias go into the kernel and the bias of `dense`. Their
    gradients then come from those of the kernel and the bias, and need no sums over the map.
    Float32 keeps the order of the operations, and with it the rounding.

    Args:
      norm: the norm.
      dense: `layers.Dense` or `layers.PatchConv`.
      x: input.
    """
    if not norm.foldable(x):
        return dense(norm(x))
    y = map_norm(x, None, None, norm.epsilon) if x.ndim == 4 else normalise(x, norm.epsilon)
    return dense(y, norm.affine)
