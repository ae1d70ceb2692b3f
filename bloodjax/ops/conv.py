"""Convolution whose kernel gradient is fast on CPU for large maps too.

The kernel gradient is a convolution with a window as large as the map. For large maps XLA's CPU
backend transposes both operands, and reaches a third of its speed on small maps. This module
computes it in tiles of a few rows instead: each tile is a matrix product of the output gradient
with the input patches, and fits into the cache. GPU and TPU use XLA's own.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bloodjax.ops.depthwise_cpu import pad

Padding = tuple[tuple[int, int], tuple[int, int]]

_TILE_ROWS = 8
# Fewest output pixels and input channels for which tiles are used. Measured on x86: at 24x24
# pixels XLA is as fast; at 48x48 and above it takes 1.4 to 2 times as long. Fewer channels, such as
# an image's three, were not measured and are left to XLA.
_LARGE_MAP = 1024
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

    if grad.shape[1] * grad.shape[2] < _LARGE_MAP or x.shape[-1] < _CHANNELS:
        return x_grad, native(x, grad)
    tiled = functools.partial(
        _kernel_grad_in_tiles, window=kernel.shape[:2], stride=stride, padding=padding
    )
    return x_grad, lax.platform_dependent(x, grad, cpu=tiled, default=native)


_conv.defvjp(_forward, _backward)


def _kernel_grad_in_tiles(x, grad, *, window, stride, padding):
    (rows, columns), (height, width) = window, grad.shape[1:3]
    tiles = -(-height // _TILE_ROWS)
    grad = pad(grad, ((0, tiles * _TILE_ROWS - height), (0, 0)))
    # Rows and columns of the padded input that the tiles read.
    extent = [(n - 1) * stride + k for n, k in ((tiles * _TILE_ROWS, rows), (width, columns))]
    margins = [
        (before, total - before - size)
        for (before, _), total, size in zip(padding, extent, x.shape[1:3], strict=True)
    ]
    x = pad(x, margins)
    tile_rows = (_TILE_ROWS - 1) * stride + rows

    def add_tile(index, total):
        example, tile = index // tiles, index % tiles
        start = (example, tile * _TILE_ROWS * stride, 0, 0)
        pixels = lax.dynamic_slice(x, start, (1, tile_rows, *x.shape[2:]))[0]
        start = (example, tile * _TILE_ROWS, 0, 0)
        grads = lax.dynamic_slice(grad, start, (1, _TILE_ROWS, *grad.shape[2:]))[0]
        windows = (
            pixels[i : i + tile_rows - rows + 1, j : j + extent[1] - columns + 1]
            for i in range(rows)
            for j in range(columns)
        )
        patches = jnp.concatenate([window[::stride, ::stride] for window in windows], axis=-1)
        return total + jnp.einsum("hwo,hwp->op", grads, patches, preferred_element_type=jnp.float32)

    zeros = jnp.zeros((grad.shape[-1], rows * columns * x.shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, x.shape[0] * tiles, add_tile, zeros).astype(x.dtype)
    return sums.T.reshape(rows, columns, x.shape[-1], grad.shape[-1])
