"""Depthwise convolution as Pallas kernels, which Triton compiles for NVIDIA GPUs.

Channels are contiguous in memory, so a program processes a block of channels at several pixels.
The pixels of a row are numbered across the batch, so that maps of 3x3 fill a block as well as large
maps. Further rows are unrolled, and a row of the input is read once for all output rows that it
contributes to. All taps are unrolled. Sums are in float32.

The input gradient uses the same kernel: it is a correlation of the output gradient, dilated by the
stride, with the flipped kernel. Only every d-th pixel of a dilated map is non-zero, and the output
pixel modulo d, its phase, determines which taps meet such a pixel. A program computes one phase, so
it never reads or multiplies zeros.

For the kernel gradient each program sums a part of the batch, and XLA adds the parts. There are no
atomic operations, so the result is deterministic.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# Initial values, derived from an H100's sizes; measure them with `python -m benchmarks.depthwise`.
_BLOCK_BYTES = 128  # of contiguous channels: a cache line
_WARP_VALUES = 256  # sums per warp and output row: eight per thread
_PROGRAMS = 512  # enough programs to occupy a large GPU
# One program computes all rows of a map with at most `_MAX_ROWS` output rows, and never reads rows
# outside it. Larger maps are divided into blocks of about `_ROWS` rows.
_ROWS = 4
_MAX_ROWS = 6
_KERNEL_GRAD_WARPS = 4
_KERNEL_GRAD_VALUES = 100  # sums per thread, over all taps


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Height or width of a correlation.

    Tap i of output pixel o meets pixel `o * stride + i - before` of the input, dilated.
    """

    size: int
    out: int
    kernel: int
    stride: int
    before: int
    dilation: int = 1

    def phase(self, phase):
        """The first tap that meets a non-zero pixel, and the shift of the pixels."""
        if self.dilation == 1:
            return 0, self.before
        lift = abs(self.before) + 1  # keeps the division's operand positive
        offset = self.before - phase + lift * self.dilation
        return offset % self.dilation, offset // self.dilation - lift

    def outputs(self) -> int:
        """Output pixels of a phase, at most."""
        return pl.cdiv(self.out, self.dilation)

    def taps(self) -> list[int]:
        """Which of a phase's taps meet the input at all, counted from the first."""
        count = pl.cdiv(self.kernel, self.dilation)
        if self.dilation > 1:
            return list(range(count))
        reach = range(-self.before, self.stride * (self.out - 1) - self.before + 1)
        return [i for i in range(count) if i + reach.start < self.size and i + reach.stop > 0]


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Block that one program computes: `pixels` of a row x `rows` x `channels`."""

    pixels: int
    rows: int
    channels: int
    warps: int


def _channel_block(channels: int, dtype) -> int:
    """Channels per block: a power of two, halved if the last block would be half empty."""
    block = min(_BLOCK_BYTES // jnp.dtype(dtype).itemsize, pl.next_power_of_2(channels))
    return block // 2 if 0 < channels % block <= block // 2 else block


def _row_block(rows: int) -> int:
    return rows if rows <= _MAX_ROWS else pl.cdiv(rows, pl.cdiv(rows, _ROWS))


def _both(*masks):
    """The conjunction of masks; None means everywhere."""
    present = [mask for mask in masks if mask is not None]
    return functools.reduce(operator.and_, present) if present else None


def _within(index, size: int):
    """Mask of 0 <= index < size. For a static index: None if it is inside, False if outside."""
    if isinstance(index, int):
        return None if 0 <= index < size else False
    return (index >= 0) & (index < size)


def _load(ref, index, mask):
    other = None if mask is None else jnp.zeros((), ref.dtype)
    return plgpu.load(ref.at[index], mask=mask, other=other).astype(jnp.float32)


def _block(start, length: int, size: int):
    """`length` indices from `start`, and the mask of those below `size`."""
    index = start + lax.iota(jnp.int32, length)
    return index, None if size % length == 0 else index < size


def _convolve_kernel(x_ref, kernel_ref, out_ref, *, rows: _Axis, columns: _Axis, tile: _Tile):
    batch_pixels, channels = x_ref.shape
    width = columns.outputs()
    total = batch_pixels // (rows.size * columns.size) * width
    channel, channel_mask = _block(pl.program_id(0) * tile.channels, tile.channels, channels)
    channel = channel[None]
    channel_mask = None if channel_mask is None else channel_mask[None]
    row = 0 if tile.rows == rows.outputs() else pl.program_id(1) * tile.rows
    pixel, pixel_mask = _block(pl.program_id(2) * tile.pixels, tile.pixels, total)
    example, column = pixel // width, pixel % width
    first_row_tap, row_shift = rows.phase(pl.program_id(3))
    first_column_tap, column_shift = columns.phase(pl.program_id(4))

    def weights(i, j):
        i, j = rows.dilation * i + first_row_tap, columns.dilation * j + first_column_tap
        known = rows.dilation == columns.dilation == 1
        inside = None if known else (i < rows.kernel) & (j < columns.kernel)
        return _load(kernel_ref, (i * columns.kernel + j, channel), _both(inside, channel_mask))

    sums = [jnp.zeros((tile.pixels, tile.channels), jnp.float32)] * tile.rows
    for j in columns.taps():
        taps = {i: weights(i, j) for i in rows.taps()}
        x_column = column * columns.stride + j - column_shift
        column_mask = _both(_within(x_column, columns.size), pixel_mask)[:, None]
        start = example * (rows.size * columns.size) + x_column
        for r in range((tile.rows - 1) * rows.stride + pl.cdiv(rows.kernel, rows.dilation)):
            x_row = row * rows.stride + r - row_shift
            row_mask = _within(x_row, rows.size)
            if row_mask is False:
                continue
            index = ((start + x_row * columns.size)[:, None], channel)
            values = _load(x_ref, index, _both(row_mask, column_mask, channel_mask))
            for t in range(tile.rows):
                if r - t * rows.stride in taps:
                    sums[t] += values * taps[r - t * rows.stride]

    out_column = columns.dilation * column + pl.program_id(4)
    column_mask = None if columns.out % columns.dilation == 0 else out_column < columns.out
    column_mask = _both(column_mask, pixel_mask)
    mask = _both(None if column_mask is None else column_mask[:, None], channel_mask)
    for t in range(tile.rows):
        out_row = rows.dilation * (row + t) + pl.program_id(3)
        known = rows.out % (rows.dilation * tile.rows) == 0
        row_mask = None if known else out_row < rows.out
        index = (example * rows.out + out_row) * columns.out + out_column
        values = sums[t].astype(out_ref.dtype)
        plgpu.store(out_ref.at[index[:, None], channel], values, mask=_both(mask, row_mask))


def _convolve(x, kernel, rows: _Axis, columns: _Axis, interpret):
    batch, channels = x.shape[0], x.shape[-1]
    block = _channel_block(channels, x.dtype)
    row_block = _row_block(rows.outputs())

    def grid(warps):
        return (
            pl.cdiv(channels, block),
            pl.cdiv(rows.outputs(), row_block),
            pl.cdiv(batch * columns.outputs(), warps * _WARP_VALUES // block),
            rows.dilation,
            columns.dilation,
        )

    def programs(warps):
        return functools.reduce(operator.mul, grid(warps))

    warps = 4 if programs(4) >= _PROGRAMS else 2
    tile = _Tile(warps * _WARP_VALUES // block, row_block, block, warps)
    out = pl.pallas_call(
        functools.partial(_convolve_kernel, rows=rows, columns=columns, tile=tile),
        out_shape=jax.ShapeDtypeStruct((batch * rows.out * columns.out, channels), x.dtype),
        grid=grid(warps),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="depthwise",
    )(x.reshape(-1, channels), kernel.reshape(-1, channels))
    return out.reshape(batch, rows.out, columns.out, channels)


def forward(x, kernel, *, stride, padding, interpret=False):
    """The convolution; arguments as in `depthwise.depthwise_conv`."""
    axes = [
        _Axis(size, (size + before + after - k) // stride + 1, k, stride, before)
        for size, k, (before, after) in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    ]
    return _convolve(x, kernel, *axes, interpret)


def input_grad(grad, kernel, *, size, stride, padding, interpret=False):
    """Gradient of an input of `size` (height, width), given the output gradient."""
    axes = [
        _Axis(out, n, k, 1, k - 1 - before, dilation=stride)
        for out, n, k, (before, _) in zip(
            grad.shape[1:3], size, kernel.shape[:2], padding, strict=True
        )
    ]
    return _convolve(grad, kernel[::-1, ::-1], *axes, interpret)


def _kernel_grad_kernel(
    x_ref, grad_ref, out_ref, *, rows: _Axis, columns: _Axis, tile: _Tile, steps: int
):
    batch_pixels, channels = x_ref.shape
    total = batch_pixels // (rows.size * columns.size) * columns.out
    row_tiles = pl.cdiv(rows.out, tile.rows)
    part = pl.program_id(1)
    channel, channel_mask = _block(pl.program_id(0) * tile.channels, tile.channels, channels)
    channel = channel[None]
    channel_mask = None if channel_mask is None else channel_mask[None]

    def add(step, sums):
        sums = dict(sums)
        unit = part * steps + step
        row = 0 if row_tiles == 1 else unit % row_tiles * tile.rows
        pixel = unit // row_tiles * tile.pixels + lax.iota(jnp.int32, tile.pixels)
        pixel_mask = pixel < total
        example, column = pixel // columns.out, pixel % columns.out
        grads = []
        for t in range(tile.rows):
            index = (example * rows.out + row + t) * columns.out + column
            row_mask = None if rows.out % tile.rows == 0 else row + t < rows.out
            mask = _both(pixel_mask[:, None], row_mask, channel_mask)
            grads.append(_load(grad_ref, (index[:, None], channel), mask))
        for j in columns.taps():
            x_column = column * columns.stride + j - columns.before
            column_mask = (_within(x_column, columns.size) & pixel_mask)[:, None]
            start = example * (rows.size * columns.size) + x_column
            for r in range((tile.rows - 1) * rows.stride + rows.kernel):
                x_row = row * rows.stride + r - rows.before
                row_mask = _within(x_row, rows.size)
                if row_mask is False:
                    continue
                index = ((start + x_row * columns.size)[:, None], channel)
                values = _load(x_ref, index, _both(row_mask, column_mask, channel_mask))
                for t, grad in enumerate(grads):
                    if (r - t * rows.stride, j) in sums:
                        sums[r - t * rows.stride, j] += values * grad
        return sums

    zeros = jnp.zeros((tile.pixels, tile.channels), jnp.float32)
    sums = {(i, j): zeros for i in rows.taps() for j in columns.taps()}
    sums = lax.fori_loop(0, steps, add, sums)
    for i in range(rows.kernel):
        for j in range(columns.kernel):
            value = jnp.sum(sums.get((i, j), zeros), axis=0)[None]
            tap = i * columns.kernel + j
            plgpu.store(out_ref.at[part, tap, channel], value, mask=channel_mask)


def kernel_grad(x, grad, *, window, stride, padding, interpret=False):
    """The float32 gradient of a kernel of `window` (rows, columns), given the output gradient."""
    batch, channels = x.shape[0], x.shape[-1]
    rows, columns = (
        _Axis(size, out, k, stride, before)
        for size, out, k, (before, _) in zip(
            x.shape[1:3], grad.shape[1:3], window, padding, strict=True
        )
    )
    block = _channel_block(channels, x.dtype)
    taps = len(rows.taps()) * len(columns.taps())
    thread = 1 << max(1, _KERNEL_GRAD_VALUES // max(1, taps)).bit_length() - 1  # a power of two
    thread = min(thread, _WARP_VALUES // 32)
    pixels = _KERNEL_GRAD_WARPS * 32 * thread // block
    tile = _Tile(pixels, _row_block(rows.out), block, _KERNEL_GRAD_WARPS)
    blocks = pl.cdiv(channels, block)
    units = pl.cdiv(rows.out, tile.rows) * pl.cdiv(batch * columns.out, tile.pixels)
    steps = pl.cdiv(units, max(1, _PROGRAMS // blocks))
    parts = pl.cdiv(units, steps)
    sums = pl.pallas_call(
        functools.partial(_kernel_grad_kernel, rows=rows, columns=columns, tile=tile, steps=steps),
        out_shape=jax.ShapeDtypeStruct((parts, window[0] * window[1], channels), jnp.float32),
        grid=(blocks, parts),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="depthwise_kernel_grad",
    )(x.reshape(-1, channels), grad.reshape(-1, channels))
    return jnp.sum(sums, axis=0).reshape(*window, channels)
