"""Convolution whose kernel gradient is fast on CPU for large maps too.

The kernel gradient is a convolution with a window as large as the map. For large maps XLA's CPU
backend transposes both operands, and reaches a third to a ninth of its speed on small maps. This
module adds the products of tiles in a loop instead: per tap of the kernel, a matrix product of the
output gradient with the input's pixels under that tap. A tile is some rows of a map, or several
maps, and fits into the cache. GPU and TPU use XLA's own.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bloodjax.ops.depthwise_cpu import pad

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
        return jax.linear_transpose(as_kernel, kernel)(grad)[0]

    if grad.shape[1] * grad.shape[2] < _LARGE_MAP:
        return x_grad, native(x, grad)
    tiled = functools.partial(
        _kernel_grad_in_tiles, window=kernel.shape[:2], stride=stride, padding=padding
    )
    return x_grad, lax.platform_dependent(x, grad, cpu=tiled, default=native)


_conv.defvjp(_forward, _backward)


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
