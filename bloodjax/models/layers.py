"""Layers that the families share.

Dropout does not depend on the number of devices: the key of each example is derived from its index
in the global batch, so that one device, eight devices under jit and eight under pmap drop the same
values.
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
from bloodjax.ops.depthwise import depthwise_branch, depthwise_conv
from bloodjax.ops.depthwise_silu import silu_depthwise_silu
from bloodjax.ops.elementwise import precise
from bloodjax.ops.pointwise import pointwise_conv

# Function of a number of channels that gives each channel's factor and offset, both float32.
Affine = Callable[[int], tuple[Float[Array, " channels"], Float[Array, " channels"]]]

# What `example_keys` must know of a batch that a step is traced for. They are context variables
# because Flax gives a layer only its inputs and a key; an argument would have to pass through every
# module of every network.
# (index, number), set by `micro_batch`.
_MICRO_BATCH = contextvars.ContextVar("micro_batch", default=(0, 1))
# Set by `views_of_examples`.
_VIEWS = contextvars.ContextVar("views", default=1)


@contextlib.contextmanager
def micro_batch(index: Int32[Array, ""], number: int) -> Iterator[None]:
    """Context in which batches are micro-batches, for `example_keys`.

    Micro-batch `index` consists of the examples `index`, `index + number`, ... of the global batch.

    Args:
      index: index of the micro-batch, in 0..number - 1; may be traced.
      number: number of micro-batches per global batch.
    """
    token = _MICRO_BATCH.set((index, number))
    try:
        yield
    finally:
        _MICRO_BATCH.reset(token)


@contextlib.contextmanager
def views_of_examples(number: int) -> Iterator[None]:
    """Context in which each example of a batch is `number` consecutive rows, for `example_keys`."""
    token = _VIEWS.set(number)
    try:
        yield
    finally:
        _VIEWS.reset(token)


def example_keys(key: Key[Array, ""], batch: int, axis_name: str | None) -> Key[Array, " batch"]:
    """Returns a key per example, which depends only on the example's index in the global batch.

    Within `views_of_examples` each view of an example has a key of its own.

    Args:
      key: key of the global batch.
      batch: number of examples on this device (under jit: in the global batch), of the current
        `micro_batch` if there is one; in `views_of_examples` the number of views.
      axis_name: pmap axis name; None under jit.
    """
    start = jnp.int32(0) if axis_name is None else lax.axis_index(axis_name) * batch
    first, stride = _MICRO_BATCH.get()
    index = start + jnp.arange(batch, dtype=jnp.int32)
    views = _VIEWS.get()
    if views == 1:
        index = first + stride * index
    else:
        index = (first + stride * (index // views)) * views + index % views
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def maybe_remat(target: Callable, remat: bool) -> Callable:
    """Returns `target`, with rematerialisation if `remat`: only its input is stored.

    The activations inside are recomputed in the backward pass (Chen et al., "Training deep nets
    with sublinear memory cost", 2016, arXiv:1604.06174). Variables and dropout masks do not change.
    It saves no memory on CPU, where XLA removes the barriers that delay the recomputation.

    Args:
      target: a module class whose `__call__` takes a map and then static arguments; or such a
        method of a module, which is then called with the module as its first argument.
      remat: whether to rematerialise.
    """
    if not remat:
        return target
    function = target.__call__ if inspect.isclass(target) else target
    arguments = len(inspect.signature(function).parameters)
    return nn.remat(target, static_argnums=tuple(range(2, arguments)))


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014, JMLR 15), or stochastic depth with `broadcast`.

    Attributes:
      rate: drop rate, in [0, 1).
      broadcast: one decision per example instead of per value; on a residual branch this is
        stochastic depth (Huang et al., 2016, arXiv:1603.09382).
      axis_name: pmap axis name; None under jit.
    """

    rate: float
    broadcast: bool = False
    axis_name: str | None = None

    def __call__(self, x: Float[Array, "batch ..."], train: bool) -> Float[Array, "batch ..."]:
        """Zeroes random values and scales the others by 1 / (1 - rate); only while training."""
        if not train or self.rate == 0.0:
            return x
        keep = self._kept(x.shape[0], (1,) * (x.ndim - 1) if self.broadcast else x.shape[1:])
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))

    def factors(self, batch: int, train: bool) -> Float[Array, " batch"] | None:
        """Returns the factor of each example with `broadcast`, in float32; None if all are 1."""
        if not train or self.rate == 0.0:
            return None
        return self._kept(batch, ()).astype(jnp.float32) * (1.0 / (1.0 - self.rate))

    @nn.compact
    def _kept(self, batch, shape):
        keys = example_keys(self.make_rng("dropout"), batch, self.axis_name)
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, shape))(keys)


class PatchConv(nn.Module):
    """Convolution whose stride equals its kernel size, computed as a matrix product of patches.

    The kernel has a convolution's shape [size, size, in, out]. Rows and columns that do not fill a
    patch are dropped, as in a convolution without padding. Attributes as in `Conv`.
    """

    features: int
    size: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], affine: Affine | None = None
    ) -> Float[Array, "b h2 w2 features"]:
        """Returns a map of 1 / `size` of the height and width.

        Args:
          x: input.
          affine: gives a factor and an offset of each input channel; see `norms.norm_dense`.
        """
        b, h, w, c = x.shape
        s = self.size
        kernel = self.param("kernel", self.kernel_init, (s, s, c, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = _behind(affine, kernel, bias)
        x = x[:, : h // s * s, : w // s * s].reshape(b, h // s, s, w // s, s, c)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _shifted(jnp.einsum("bhiwjc,ijco->bhwo", x, kernel), bias)


def pads(
    mode: str, shape: tuple[int, int], size: int | tuple[int, int], stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the padding ((top, bottom), (left, right)) in pixels of a padding mode.

    Args:
      mode: "symmetric": half the kernel on both sides, as in PyTorch. "same": the least that gives
        an output of `ceil(shape / stride)`, with the odd pixel after, as TensorFlow's SAME.
        "valid": none. "keras": as `keras.applications` pads explicitly
        (`keras.src.applications.imagenet_utils.correct_pad`): "symmetric", with one pixel less
        before at stride 2 on a map of even size. "after": "symmetric", but at stride 2 only after,
        as in Keras's MobileNet.
      shape: height and width of the map.
      size: kernel size, one number or (rows, columns).
      stride: stride of both axes.
    """
    sizes = (size, size) if isinstance(size, int) else size
    if mode == "valid":
        return ((0, 0), (0, 0))
    if mode == "symmetric":
        return tuple((k // 2, k // 2) for k in sizes)
    if mode == "keras" and stride > 1:
        return tuple((k // 2 - (1 - n % 2), k // 2) for n, k in zip(shape, sizes, strict=True))
    if mode == "after":
        return tuple((0 if stride > 1 else k // 2, k // 2) for k in sizes)
    if mode not in ("same", "keras"):
        raise ValueError(f"padding is {mode!r}, expected symmetric, same, valid, keras or after")
    total = [
        max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(shape, sizes, strict=True)
    ]
    return tuple((t // 2, t - t // 2) for t in total)


def _behind(affine: Affine | None, kernel, bias):
    """Returns kernel and bias that include a factor and an offset of each input channel."""
    if affine is None:
        return kernel, bias
    factor, offset = affine(kernel.shape[-2])
    every_pixel = kernel.sum(tuple(range(kernel.ndim - 2)))
    bias = bias + jnp.dot(offset, every_pixel, precision="highest")
    return kernel * factor[:, None][(None,) * (kernel.ndim - 2)], bias


def _scaled(kernel, channels: int, affine: Affine | None):
    """Returns `kernel` times the factor, and factor and offset, or None."""
    if affine is None:
        return kernel, None
    factor, offset = affine(channels)
    return kernel * factor[(None,) * (kernel.ndim - 1)], (factor, offset)


def _shifted(x, bias, folded=None):
    """Returns a layer's output `x` plus its bias, if any, and the offset of `_scaled`."""
    offset = bias
    if folded is not None:
        factor, offset = folded
        offset = offset if bias is None else offset + bias * factor
    if offset is None:
        return x
    # In float32, so that the sum over the map in the bias's gradient is too.
    wide = precise(x)
    return (wide + offset.astype(wide.dtype)[(None,) * (x.ndim - 1)]).astype(x.dtype)


class Conv(nn.Module):
    """Convolution; 1x1 kernels are computed as a matrix product.

    Attributes:
      features: output channels.
      size: kernel size, one number or (rows, columns).
      stride: stride of both axes.
      padding: padding mode, see `pads`.
      use_bias: whether to add a bias.
      dtype: compute dtype.
      kernel_init: initialiser of the kernel.
    """

    features: int
    size: int | tuple[int, int] = 3
    stride: int = 1
    padding: str = "symmetric"
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    def __call__(
        self, x: Float[Array, "b h w c"], affine: Affine | None = None
    ) -> Float[Array, "b h2 w2 features"]:
        """Returns the convolution of the input.

        Args:
          x: input.
          affine: gives the factor and the offset of each output channel; see `norms.conv_norm`.
        """
        y, bias, folded = self._convolved(x, affine)
        return _shifted(y, bias, folded)

    def without_offset(
        self, x: Float[Array, "b h w c"], affine: Affine
    ) -> tuple[Float[Array, "b h2 w2 features"], Float[Array, " features"]]:
        """Returns the convolution without bias, and `affine`'s offset that is to be added."""
        y, _, (_, offset) = self._convolved(x, affine)
        return y, offset

    @nn.compact
    def _convolved(self, x, affine):
        rows, columns = (self.size, self.size) if isinstance(self.size, int) else self.size
        kernel = self.param("kernel", self.kernel_init, (rows, columns, x.shape[-1], self.features))
        kernel, folded = _scaled(kernel, self.features, affine)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if rows == columns == 1:
            x = pointwise_conv(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            padding = pads(self.padding, x.shape[1:3], (rows, columns), self.stride)
            x = conv(x, kernel, stride=self.stride, padding=padding)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x, bias, folded


class Dense(nn.Module):
    """Dense layer over the channels of a map; attributes as in `Conv`."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    def __call__(
        self,
        x: Float[Array, "... channels"],
        affine: Affine | None = None,
        scale: Float[Array, " features"] | None = None,
    ) -> Float[Array, "... features"]:
        """Returns input times kernel plus bias; arguments as in `weights`."""
        kernel, bias = self.weights(x.shape[-1], affine, scale)
        y = _shifted(pointwise_conv(x.astype(self.dtype), kernel), bias)
        if scale is None or self._folds(scale):
            return y
        return y * scale.astype(self.dtype)[(None,) * (x.ndim - 1)]

    @nn.compact
    def weights(
        self,
        channels: int,
        affine: Affine | None = None,
        scale: Float[Array, " features"] | None = None,
    ) -> tuple[Float[Array, "channels features"], Float[Array, " features"]]:
        """Returns the kernel in the compute dtype, and the bias in float32.

        Args:
          channels: number of input channels.
          affine: gives a factor and an offset of each input channel; see `norms.norm_dense`.
          scale: per-channel scale of the output. In bfloat16, kernel and bias are multiplied by it,
            so that its gradient needs no sum over the map.
        """
        kernel = self.param("kernel", self.kernel_init, (channels, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = _behind(affine, kernel, bias)
        if self._folds(scale):
            kernel, bias = kernel * scale[None], bias * scale
        return kernel.astype(self.dtype), bias

    def _folds(self, scale) -> bool:
        return scale is not None and jnp.dtype(self.dtype) == jnp.bfloat16


class DepthwiseConv(nn.Module):
    """Depthwise convolution with a square kernel; attributes as in `Conv`."""

    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    padding: str = "symmetric"
    use_bias: bool = True

    def __call__(
        self, x: Float[Array, "b h w c"], affine: Affine | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        """Returns the convolution of each channel with its own filter; arguments as in `Conv`."""
        x, kernel, bias, folded = self._operands(x, affine)
        padding = pads(self.padding, x.shape[1:3], self.size, self.stride)
        y = depthwise_conv(x, kernel, stride=self.stride, padding=padding)
        return _shifted(y, bias, folded)

    def branch(
        self, x: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 c"], Float[Array, " c"]]:
        """Returns the input for a shortcut, its convolution of stride 1, and the bias to add."""
        x, kernel, bias, _ = self._operands(x, None)
        padding = pads(self.padding, x.shape[1:3], self.size, 1)
        return *depthwise_branch(x, kernel, padding=padding), bias

    def between_silus(
        self, x: Float[Array, "b h w c"], shift: Float[Array, " c"] | None, affine: Affine
    ) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b c"]]:
        """Returns SiLU of the convolution, and its mean over the pixels.

        Args:
          x: input.
          shift: added to the input before its SiLU; None for an input that had its activation.
          affine: gives the factor and the offset of each output channel; see `norms.conv_norm`.
        """
        x, kernel, _, (_, offset) = self._operands(x, affine)
        padding = pads(self.padding, x.shape[1:3], self.size, self.stride)
        return silu_depthwise_silu(x, shift, kernel, offset, stride=self.stride, padding=padding)

    @nn.compact
    def _operands(self, x, affine):
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, channels))
        kernel, folded = _scaled(kernel, channels, affine)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        return x.astype(self.dtype), kernel.astype(self.dtype), bias, folded


def max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: str = "symmetric"
) -> Float[Array, "b h2 w2 c"]:
    """Max pooling over windows of `size`; pads with -inf. For `padding` see `pads`."""
    padding = pads(padding, x.shape[1:3], size, stride)
    return nn.max_pool(x, (size, size), (stride, stride), padding)
