"""Convolutions whose kernel gradient is fast on CPU, and which fill the lanes of a TPU.

The kernel gradient is a convolution with a window as large as the map. For large maps XLA's CPU
backend transposes both operands, and reaches a third to a ninth of its speed on small maps. This
module adds the products of tiles in a loop instead: per tap of the kernel, a matrix product of the
output gradient with the input's pixels under that tap. A tile is some rows of a map, or several
maps, and fits into the cache. GPU and TPU use XLA's own.

A TPU computes on vectors of 128 channels. `narrow_stage` holds two columns of a map of up to 64
channels in one vector.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from bloodjax.ops.depthwise_cpu import pad
from bloodjax.ops.elementwise import precise, relu

Padding = tuple[tuple[int, int], tuple[int, int]]

# Output pixels of a tile.
_TILE = 1152
# Fewest output pixels for which tiles are used. Measured on x86: at 6x6 pixels XLA is as fast; at
# 12x12 it takes twice as long, and above that 3 to 4 times.
_LARGE_MAP = 100
# With fewer channels, such as an image's three, one product takes the pixels under all taps.
_CHANNELS = 16


def conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    stride: int = 1,
    padding: Padding,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolution, as computed by `jax.lax.conv_general_dilated`.

    Args:
      x: input.
      kernel: kernel, in `x`'s dtype.
      stride: stride of both axes.
      padding: zeros ((top, bottom), (left, right)).

    Returns:
      The output in `x`'s dtype, of size `(size + padding - kernel) // stride + 1`.
    """
    return _conv(x, kernel, stride, padding)


def _native(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, stride, padding):
    return _native(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
    return _native(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, grad):
    x, kernel = residuals
    as_input = functools.partial(_native, kernel=kernel, stride=stride, padding=padding)
    (x_grad,) = jax.linear_transpose(as_input, x)(grad)

    def native(x, grad):
        as_kernel = functools.partial(_native, x, stride=stride, padding=padding)
        return _as_parameter(jax.linear_transpose(as_kernel, kernel)(grad)[0])

    if grad.shape[1] * grad.shape[2] < _LARGE_MAP:
        return x_grad, native(x, grad)
    tiled = functools.partial(
        _kernel_grad_in_tiles, window=kernel.shape[:2], stride=stride, padding=padding
    )
    return x_grad, lax.platform_dependent(x, grad, cpu=tiled, default=native)


_conv.defvjp(_forward, _backward)


def _as_parameter(grad):
    """Returns a kernel's gradient, on a GPU in the parameter's order of dimensions.

    cuDNN has the features outermost. The optimiser would otherwise compute in that order: it would
    transpose the parameter and its own state, and could not update them in place.
    """

    def in_order(grad):
        return lax.optimization_barrier(
            with_layout_constraint(grad, Layout(tuple(range(grad.ndim))))
        )

    return lax.platform_dependent(grad, cuda=in_order, default=lambda grad: grad)


def _tiling(batch, height, width):
    """Examples in a tile, which divide the batch; rows in a tile; tiles in a map."""
    if height * width <= _TILE:
        most = _TILE // (height * width)
        return max(n for n in range(1, most + 1) if batch % n == 0), height, 1
    tiles = -(-height // max(1, _TILE // width))
    return 1, -(-height // tiles), tiles


def _kernel_grad_in_tiles(x, grad, *, window, stride, padding):
    (rows, columns), (batch, height, width, features) = window, grad.shape
    examples, tile, tiles = _tiling(batch, height, width)
    grad = pad(grad, ((0, tiles * tile - height), (0, 0)))
    # Rows and columns of the padded input that the tiles read.
    extent = [(n - 1) * stride + k for n, k in ((tiles * tile, rows), (width, columns))]
    margins = [
        (before, total - before - size)
        for (before, _), total, size in zip(padding, extent, x.shape[1:3], strict=True)
    ]
    x = pad(x, margins)
    channels, wide = x.shape[-1], jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    reach = [(n - 1) * stride + 1 for n in (tile, width)]

    def add_tile(index, sums):
        example, row = index // tiles * examples, index % tiles * tile
        size = (examples, reach[0] + rows - 1, *x.shape[2:])
        pixels = lax.dynamic_slice(x, (example, row * stride, 0, 0), size)
        size = (examples, tile, width, features)
        grads = lax.dynamic_slice(grad, (example, row, 0, 0), size).reshape(-1, features)
        # Without the barriers the matrix products read their left operand transposed, and XLA
        # computes the slices again for each.
        grads = lax.optimization_barrier(grads.T)
        parts = [
            pixels[:, i : i + reach[0] : stride, j : j + reach[1] : stride].reshape(-1, channels)
            for i in range(rows)
            for j in range(columns)
        ]
        if channels < _CHANNELS:
            parts = [jnp.concatenate(parts, axis=-1)]
        parts = lax.optimization_barrier(parts)
        return [
            total + jnp.matmul(grads, part, preferred_element_type=wide)
            for total, part in zip(sums, parts, strict=True)
        ]

    taps = rows * columns
    shapes = [(features, channels)] * taps
    if channels < _CHANNELS:
        shapes = [(features, taps * channels)]
    zeros = [jnp.zeros(shape, wide) for shape in shapes]
    sums = lax.fori_loop(0, batch // examples * tiles, add_tile, zeros)
    kernel_grad = jnp.concatenate(sums, axis=-1).astype(x.dtype)
    return kernel_grad.T.reshape(rows, columns, channels, features)


# Largest number of channels of which two columns fill a vector.
NARROW = 64


def narrow_stage(
    x: Float[Array, "batch height width channels"],
    layers: Sequence[Mapping[str, Float[Array, ...]]],
    names: Sequence[str],
) -> Float[Array, "batch half_height half_width features"]:
    """3x3 convolutions with ReLU, padded by 1, and then max pooling of 2x2.

    On a TPU, columns 2j and 2j + 1 of a map are the channels of column j of a map of half the
    width. A convolution of that map takes half the steps of one of the original, although half of
    its kernel is zeros, and so do the operations on vectors.

    Args:
      x: input of even height and width, in the compute dtype.
      layers: "kernel" [3, 3, channels, features] and "bias" of each convolution, at most `NARROW`
        features each.
      names: name scope of each convolution.

    Returns:
      The pooled map, in `x`'s dtype. Of equal largest values in a window, one has the gradient.
    """
    return lax.platform_dependent(
        x,
        list(layers),
        tpu=functools.partial(_stage_in_pairs, names=names),
        default=functools.partial(_stage, names=names),
    )


def _shifted_relu(x, bias):
    wide = precise(x)
    return relu((wide + bias.astype(wide.dtype)[None, None, None]).astype(x.dtype))


def _max_of_windows(x, window):
    # With a Python float, JAX recognises the reduction as a maximum, which it can differentiate.
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _stage(x, layers, *, names):
    for layer, name in zip(layers, names, strict=True):
        with jax.named_scope(name):
            kernel = layer["kernel"].astype(x.dtype)
            x = _shifted_relu(conv(x, kernel, padding=((1, 1), (1, 1))), layer["bias"])
    return _max_of_windows(x, (1, 2, 2, 1))


def _stage_in_pairs(x, layers, *, names):
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width // 2, 2 * channels)
    for layer, name in zip(layers, names, strict=True):
        with jax.named_scope(name):
            kernel = _kernel_of_pairs(layer["kernel"]).astype(x.dtype)
            x = conv(x, kernel, padding=((1, 1), (1, 1)))
            x = _shifted_relu(x, jnp.tile(layer["bias"], 2))
    return _larger_half(_max_of_windows(x, (1, 2, 1, 1)))


def _kernel_of_pairs(kernel):
    """The kernel [3, 3, 2 channels, 2 features] on pairs of columns that equals `kernel`."""
    # Column 2 (pair - 1) + one of the input, counted from the output's pair, meets the column
    # `tap` of the kernel for the output column `other`.
    places = np.zeros((3, 2, 2, 3), np.float32)
    for pair, one, other in np.ndindex(3, 2, 2):
        tap = 2 * (pair - 1) + one - other + 1
        if 0 <= tap < 3:
            places[pair, one, other, tap] = 1
    pairs = jnp.einsum("paot,rtcf->rpacof", jnp.asarray(places, kernel.dtype), kernel)
    rows, columns, *_ = pairs.shape
    return pairs.reshape(rows, columns, 2 * kernel.shape[2], 2 * kernel.shape[3])


@jax.custom_vjp
def _larger_half(x):
    """The larger of channel i and of channel i + half, [.., 2 c] -> [.., c]."""
    one, other = jnp.split(x, 2, axis=-1)
    return jnp.maximum(one, other)


def _larger_half_forward(x):
    return _larger_half(x), x


def _larger_half_backward(x, grad):
    one, other = jnp.split(x, 2, axis=-1)
    first, zero = one >= other, jnp.zeros((), grad.dtype)
    parts = (jnp.where(first, grad, zero), jnp.where(first, zero, grad))
    return (jnp.concatenate(parts, axis=-1),)


_larger_half.defvjp(_larger_half_forward, _larger_half_backward)
