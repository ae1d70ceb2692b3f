"""Layers that the families share.

Randomness belongs to the example, not to the device: a layer that drops something folds the
example's index in the global batch into its key, so that one device, eight devices under jit and
eight under pmap all drop the same.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, Key

from bloodjax.ops.conv import conv
from bloodjax.ops.depthwise import depthwise_conv
from bloodjax.ops.pointwise import pointwise_conv

# (index, number) while a micro-batch is traced. Flax hands a layer its inputs and a key that it has
# folded the layer's path into, so that there is no other way down to a layer from the step.
_MICRO_BATCH = contextvars.ContextVar("micro_batch", default=(0, 1))


@contextlib.contextmanager
def micro_batch(index: Int32[Array, ""], number: int) -> Iterator[None]:
    """While it lasts, batches are the examples `index`, `index + number`, ... of the global batch.

    Args:
      index: of the micro-batch, in 0..number - 1.
      number: of micro-batches that the global batch is worked through in.
    """
    token = _MICRO_BATCH.set((index, number))
    try:
        yield
    finally:
        _MICRO_BATCH.reset(token)


def example_keys(key: Key[Array, ""], batch: int, axis_name: str | None) -> Key[Array, " batch"]:
    """One key for every example of this device's share of the batch.

    Args:
      key: the global batch's key.
      batch: examples on this device (under jit, the global batch); of the present `micro_batch`.
      axis_name: pmap's axis, or None under jit.
    """
    start = jnp.int32(0) if axis_name is None else lax.axis_index(axis_name) * batch
    first, stride = _MICRO_BATCH.get()
    index = first + stride * (start + jnp.arange(batch, dtype=jnp.int32))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def maybe_remat(target: Callable, remat: bool) -> Callable:
    """`target`, or with `remat` a form of it that keeps its input alone for the gradient.

    What lies between is computed anew in the backward pass (Chen et al., "Training deep nets with
    sublinear memory cost", 2016, arXiv:1604.06174). Variables and masks stay what they are.
    On CPU that saves no memory: XLA drops the barriers that hold the recomputation back there.

    Args:
      target: a module class whose `__call__` takes a map and then static arguments, or a method of
        a module that does, to be called with the module first.
      remat: whether.
    """
    if not remat:
        return target
    function = target.__call__ if inspect.isclass(target) else target
    arguments = len(inspect.signature(function).parameters)
    return nn.remat(target, static_argnums=tuple(range(2, arguments)))


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


def pads(
    kind: str, shape: tuple[int, int], size: int | tuple[int, int], stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros (before, after) the height and the width, as one of the sources of weights pads.

    Args:
      kind: "symmetric", half the kernel on either side (PyTorch); "same", as little as makes the
        output `ceil(shape / stride)`, the odd one after (TensorFlow's SAME); "valid", none;
        "keras", what Keras's applications do explicitly: as "symmetric", and at stride 2 on a map
        of even size one less before (`keras.src.applications.imagenet_utils.correct_pad`); or
        "after", as "symmetric", and at stride 2 only after (Keras's MobileNet).
      shape: the map's height and width.
      size: the kernel's, one number or (rows, columns).
      stride: the same in both directions.
    """
    sizes = (size, size) if isinstance(size, int) else size
    if kind == "valid":
        return ((0, 0), (0, 0))
    if kind == "symmetric":
        return tuple((k // 2, k // 2) for k in sizes)
    if kind == "keras" and stride > 1:
        return tuple((k // 2 - (1 - n % 2), k // 2) for n, k in zip(shape, sizes, strict=True))
    if kind == "after":
        return tuple((0 if stride > 1 else k // 2, k // 2) for k in sizes)
    if kind not in ("same", "keras"):
        raise ValueError(f"padding is {kind!r}, expected symmetric, same, valid, keras or after")
    total = [
        max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(shape, sizes, strict=True)
    ]
    return tuple((t // 2, t - t // 2) for t in total)


class Conv(nn.Module):
    """A convolution; a 1x1 one is a matrix product.

    Attributes:
      features: channels out.
      size: of the kernel, one number or (rows, columns).
      stride: the same in both directions.
      padding: a kind of `pads`.
      use_bias: whether a bias is added.
      dtype: of the computation.
      kernel_init: the kernel's initialiser.
    """

    features: int
    size: int | tuple[int, int] = 3
    stride: int = 1
    padding: str = "symmetric"
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Convolves."""
        rows, columns = (self.size, self.size) if isinstance(self.size, int) else self.size
        kernel = self.param("kernel", self.kernel_init, (rows, columns, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if rows == columns == 1:
            x = pointwise_conv(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            padding = pads(self.padding, x.shape[1:3], (rows, columns), self.stride)
            x = conv(x, kernel, stride=self.stride, padding=padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


class Dense(nn.Module):
    """A dense layer over the channels of a map; attributes as in `Conv`."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... features"]:
        """Multiplies by the kernel and adds the bias."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return pointwise_conv(x, kernel) + bias[(None,) * (x.ndim - 1)]


class DepthwiseConv(nn.Module):
    """A depthwise convolution; attributes as in `Conv`, of square kernels."""

    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    padding: str = "symmetric"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolves each channel with its own filter."""
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, channels))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        padding = pads(self.padding, x.shape[1:3], self.size, self.stride)
        x = depthwise_conv(x, kernel, stride=self.stride, padding=padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: str = "symmetric"
) -> Float[Array, "b h2 w2 c"]:
    """The largest value in each window; what pads is below every value."""
    padding = pads(padding, x.shape[1:3], size, stride)
    return nn.max_pool(x, (size, size), (stride, stride), padding)
