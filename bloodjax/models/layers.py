"""Layers that the families share.

Randomness belongs to the example, not to the device: a layer that drops something folds the
example's index in the global batch into its key, so that one device, eight devices under jit and
eight under pmap all drop the same.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from bloodjax.ops.depthwise import depthwise_conv


def example_keys(key: Key[Array, ""], batch: int, axis_name: str | None) -> Key[Array, " batch"]:
    """One key for every example of this device's share of the batch.

    Args:
      key: the global batch's key.
      batch: examples on this device (under jit, the global batch).
      axis_name: pmap's axis, or None under jit.
    """
    start = jnp.int32(0) if axis_name is None else lax.axis_index(axis_name) * batch
    index = start + jnp.arange(batch, dtype=jnp.int32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


class Dropout(nn.Module):
    """Sets a random part of the inputs to zero and scales the rest (Srivastava et al., 2014).

    Attributes:
      rate: the expected part that is dropped, in [0, 1).
      broadcast: drop whole examples at once: stochastic depth (Huang et al., 2016) when this
        stands on a residual branch.
      axis_name: pmap's axis, or None under jit.
    """

    rate: float
    broadcast: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], train: bool) -> Float[Array, "batch ..."]:
        """Drops while training; the identity otherwise."""
        if not train or self.rate == 0.0:
            return x
        keys = example_keys(self.make_rng("dropout"), x.shape[0], self.axis_name)
        shape = (1,) * (x.ndim - 1) if self.broadcast else x.shape[1:]
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class PatchConv(nn.Module):
    """A convolution whose stride equals its kernel size, as one matrix product over patches.

    The kernel keeps a convolution's shape [size, size, in, out]. Rows and columns that do not fill
    a patch are left out, as by a convolution without padding.
    """

    features: int
    size: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Returns the map, `size` times smaller each way."""
        b, h, w, c = x.shape
        s = self.size
        kernel = self.param("kernel", self.kernel_init, (s, s, c, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = x[:, : h // s * s, : w // s * s].reshape(b, h // s, s, w // s, s, c)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return jnp.einsum("bhiwjc,ijco->bhwo", x, kernel) + bias[None, None, None]


class DepthwiseConv(nn.Module):
    """A depthwise convolution with bias, `padding` and `stride` as in `ops.depthwise_conv`."""

    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolves each channel with its own filter."""
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return depthwise_conv(x, kernel, stride=self.stride) + bias[None, None, None]


def batch_norm(train: bool, axis_name: str | None, dtype: DTypeLike, **settings) -> nn.BatchNorm:
    """Flax's BatchNorm over the global batch, under jit and under pmap alike.

    Args:
      train: use and update the batch's statistics; otherwise the running ones stay as they are.
      axis_name: pmap's axis, or None under jit.
      dtype: the output's; statistics are float32.
      **settings: `momentum`, `epsilon`, `name` and the like.
    """
    return nn.BatchNorm(use_running_average=not train, axis_name=axis_name, dtype=dtype, **settings)
