"""BatchNorm and LayerNorm, in the forms that cost the fewest passes over a map."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.ops.elementwise import layer_norm, precise


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167) over all axes but the last.

    Its variables are Flax's: parameters `scale` and `bias`, running statistics `mean` and `var`,
    the variance biased. Flax subtracts the mean first, and then keeps that difference, as large as
    the map, for the gradient; here mean and variance go into one factor and one summand a channel,
    so that nothing but the input is kept and what follows fuses with it.

    Attributes:
      update: use the batch's statistics, and take a part of them into the running ones, if the
        collection "batch_stats" is mutable; otherwise the running ones are used, and stay.
      momentum: the part that the running statistics keep.
      epsilon: added to the variance.
      use_scale: whether there is a learnt factor.
      axis_name: pmap's axis, over which the batch lies; None under jit, where the compiler's view
        is the global batch.
      dtype: of the output; statistics are float32 at least.
    """

    update: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch ... channels"]) -> Float[Array, "batch ... channels"]:
        """Normalises."""
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = precise(x)
        used = mean.value, var.value
        if self.update:
            used = self._statistics(x)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                for running, now in zip((mean, var), used, strict=True):
                    kept = self.momentum * running.value
                    running.value = kept + (1.0 - self.momentum) * now.astype(kept.dtype)
        centre, spread = (value.astype(x.dtype) for value in used)
        factor = lax.rsqrt(spread + self.epsilon)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones_init(), channels)
            factor = factor * scale.astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), channels).astype(x.dtype)
        every = (None,) * (x.ndim - 1)
        return (x * factor[every] + (bias - centre * factor)[every]).astype(self.dtype)

    def _statistics(self, x):
        """The batch's mean and biased variance of each channel."""
        axes = tuple(range(x.ndim - 1))
        both = jnp.stack((x.mean(axes), jnp.square(x).mean(axes)))
        mean, square = both if self.axis_name is None else lax.pmean(both, self.axis_name)
        # Rounding may take the difference below 0.
        return mean, jnp.maximum(square - jnp.square(mean), jnp.zeros((), x.dtype))


class LayerNorm(nn.Module):
    """Layer normalisation over the channels; see `ops.elementwise.layer_norm`.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output; the computation is in float32 at least.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        """Normalises."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        x = precise(x)
        scale, bias = (a.astype(x.dtype) for a in (scale, bias))
        return layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)
