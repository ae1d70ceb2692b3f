"""What a Mosaic program of a depthwise convolution computes of one block of images and channels.

A TPU's registers hold 8 x 128 values, here 8 images by 128 channels of one pixel. Height and width
are then plain indices: a shifted, strided or dilated map costs nothing, and all multiplications are
elementwise.

A program converts the map to float32 in scratch memory once. Each output row is a sum over taps in
registers. Maps with few pixels are unrolled, so that no tap outside the map is computed; on larger
ones the rows are a loop, and rows of zeros are added above and below the map.

The input gradient is the same correlation with other taps: with a stride, one for each phase
(position modulo the stride) of the input's pixels. The kernel gradient has a sum for each tap,
which stays in registers while the rows are visited.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

IMAGES = 8  # per register; the batch must be a multiple of it
CHANNELS = 128  # per register
_COLUMNS = 24  # output pixels of a row whose sums are in registers at the same time
_OFFSET = -1  # key of the sum of the gradients themselves
_KERNEL_SUMS = 25  # taps whose sums are in registers at the same time
_UNROLLED = 2500  # multiplications per register of a map that is unrolled, at most
_VMEM_BYTES = 16 * 2**20  # of a program, by default
_BLOCK_BYTES = 3 * 2**20  # of the input of a program that computes the full batch, at most


@dataclasses.dataclass(frozen=True)
class Phase:
    """The output positions `out_step * m + out_start` of an axis, for m < count.

    Position m is a sum over taps of (index of the tap) times the input at `in_step * m + shift`.
    """

    count: int
    out_step: int
    out_start: int
    in_step: int
    taps: tuple[tuple[int, int], ...]  # (index, shift), by increasing shift


@dataclasses.dataclass(frozen=True)
class Axis:
    """Height or width of a correlation."""

    size: int  # of the input
    out: int
    phases: tuple[Phase, ...]

    @property
    def products(self) -> int:
        """Pairs of an output position and a tap."""
        return sum(phase.count * len(phase.taps) for phase in self.phases)

    def margins(self) -> tuple[int, int]:
        """Positions before and after the input that taps touch."""
        used = [
            (phase.taps[0][1], phase.in_step * (phase.count - 1) + phase.taps[-1][1])
            for phase in self.phases
            if phase.taps and phase.count
        ]
        before = max([0, *(-first for first, _ in used)])
        return before, max([0, *(last + 1 - self.size for _, last in used)])


def forward_axis(size, kernel, stride, padding) -> Axis:
    """From an input of `size` to the convolution's output."""
    before, after = padding
    out = (size + before + after - kernel) // stride + 1
    taps = tuple((i, i - before) for i in range(kernel))
    return Axis(size, out, (Phase(out, 1, 0, stride, taps),))


def input_grad_axis(size, out, kernel, stride, padding) -> Axis:
    """From an output gradient of `out` positions to an input of `size`."""
    phases = []
    for start in range(min(stride, size)):
        offset = start + padding[0]
        taps = [(i, (offset - i) // stride) for i in range(kernel) if (offset - i) % stride == 0]
        taps = tuple(sorted(taps, key=lambda tap: tap[1]))
        phases.append(Phase(-(-(size - start) // stride), stride, start, 1, taps))
    return Axis(out, size, tuple(phases))


def is_unrolled(rows: Axis, columns: Axis) -> bool:
    """Whether the rows of a map are unrolled."""
    return rows.products * columns.products <= _UNROLLED


def images_per_program(batch: int, bytes_each: int) -> int:
    """Images per program: all of a batch of small maps, because a program costs time to start."""
    return batch if batch * bytes_each <= _BLOCK_BYTES else IMAGES


def _register_images(index, images: int):
    """The slice of a block's images that one register holds."""
    return (
        slice(None) if images == IMAGES else pl.ds(pl.multiple_of(index * IMAGES, IMAGES), IMAGES)
    )


def _repeat(count: int, body, unroll: bool) -> None:
    """Calls `body(index)` for index < count; in a loop unless `unroll`."""
    if unroll or count == 1:
        for index in range(count):
            body(index)
    else:
        lax.fori_loop(0, count, lambda index, carry: (body(index), carry)[1], None)


def _zero_margins(ref, margins: tuple[int, int]) -> None:
    before, after = margins
    zeros = jnp.zeros(ref.shape[1:], jnp.float32)
    for row in (*range(before), *range(ref.shape[0] - after, ref.shape[0])):
        ref[row] = zeros


def correlate_block(
    convert, write, kernel_ref, scratch, images: int, *, rows: Axis, columns: Axis, width, unroll
):
    """A block of a correlation.

    Args:
      convert: function of a row and a slice of images that gives [width, 8, channels] of the input
        in float32.
      write: function of a row of the output, its columns, their values and a slice of images.
      kernel_ref: [taps, 8, channels] in float32, equal for all 8.
      scratch: float32 [height with margins, width, 8, channels].
      images: number of images of the block.
      rows: the vertical axis.
      columns: the horizontal axis.
      width: columns of the kernel.
      unroll: whether rows are unrolled.
    """
    margins = (0, 0) if unroll else rows.margins()
    _zero_margins(scratch, margins)

    def sums(row, row_taps, phase, block):
        total = [None] * len(block)
        for tap_row, shift in row_taps:
            taps = {tap: kernel_ref[tap_row * width + tap] for tap, _ in phase.taps}
            uses: dict[int, list[tuple[int, int]]] = {}
            for place, m in enumerate(block):
                for tap, column_shift in phase.taps:
                    position = phase.in_step * m + column_shift
                    if 0 <= position < columns.size:
                        uses.setdefault(position, []).append((place, tap))
            for position in sorted(uses):
                pixel = scratch[row + shift + margins[0], position]
                for place, tap in uses[position]:
                    product = lax.mul(pixel, taps[tap])
                    total[place] = (
                        product if total[place] is None else lax.add(total[place], product)
                    )
        zero = jnp.zeros(scratch.shape[2:], jnp.float32)
        return [zero if value is None else value for value in total]

    def one_register(index):
        part = _register_images(index, images)

        def convert_row(row):
            scratch[row + margins[0]] = convert(row, part)

        _repeat(rows.size, convert_row, unroll)
        for row_phase in rows.phases:

            def one_row(m, row_phase=row_phase):
                row = row_phase.in_step * m
                inside = [
                    tap for tap in row_phase.taps if not unroll or 0 <= row + tap[1] < rows.size
                ]
                out_row = row_phase.out_step * m + row_phase.out_start
                for phase in columns.phases:
                    for start in range(0, phase.count, _COLUMNS):
                        block = range(start, min(start + _COLUMNS, phase.count))
                        places = [phase.out_step * m + phase.out_start for m in block]
                        write(out_row, places, sums(row, inside, phase, block), part)

            _repeat(row_phase.count, one_row, unroll)

    _repeat(images // IMAGES, one_register, False)


def wide(ref, row, part):
    """A row of the images `part` in float32, as the functions that convert return it."""
    return ref[row, :, part].astype(jnp.float32)


def spread(kernel):
    """The kernel [rows, columns, channels] as float32 [taps, 8, channels]."""
    taps = kernel.shape[0] * kernel.shape[1]
    flat = kernel.astype(jnp.float32).reshape(taps, 1, kernel.shape[2])
    return jnp.broadcast_to(flat, (taps, IMAGES, kernel.shape[2]))


def memory(blocks, scratch, dtype) -> int:
    """Vector memory of a program, in bytes; what it does not reserve keeps XLA's own arrays.

    Args:
      blocks: pixels times images of each block; the next block is copied meanwhile, so all twice.
      scratch: pixels of each scratch array, which has 8 images in float32.
      dtype: of the blocks.
    """
    used = CHANNELS * (sum(blocks) * jnp.dtype(dtype).itemsize + IMAGES * 4 * sum(scratch))
    return max(_VMEM_BYTES, used + used // 4)


def kernel_grad_block(
    convert_x,
    convert_grad,
    out_ref,
    x_scratch,
    grad_scratch,
    images: int,
    *,
    rows: Axis,
    columns: Axis,
    unroll: bool,
    offset_ref=None,
):
    """Adds a block's products to the sums of each tap, [taps, 8, channels].

    If there is `offset_ref` [8, channels], it adds the gradients themselves to that.
    """
    margins = (0, 0) if unroll else rows.margins()
    (row_phase,), (phase,) = rows.phases, columns.phases
    width = len(phase.taps)
    per_group = max(1, _KERNEL_SUMS // width)

    @pl.when(pl.program_id(1) == 0)
    def _():
        out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)

    _zero_margins(x_scratch, margins)

    def add_row(m, taps, total):
        total = dict(total)
        for m_column in range(phase.count):
            grad = grad_scratch[m, m_column]
            if _OFFSET in total:
                total[_OFFSET] = lax.add(total[_OFFSET], grad)
            for tap_row, shift in taps:
                row = row_phase.in_step * m + shift
                if unroll and not 0 <= row < rows.size:
                    continue
                for tap, column_shift in phase.taps:
                    column = phase.in_step * m_column + column_shift
                    if 0 <= column < columns.size:
                        key = tap_row * width + tap
                        pixel = x_scratch[row + margins[0], column]
                        total[key] = lax.add(total[key], lax.mul(pixel, grad))
        return total

    def one_register(index):
        part = _register_images(index, images)

        def convert(source, target, before, row):
            target[row + before] = source(row, part)

        _repeat(rows.size, functools.partial(convert, convert_x, x_scratch, margins[0]), unroll)
        _repeat(rows.out, functools.partial(convert, convert_grad, grad_scratch, 0), unroll)
        for first in range(0, len(row_phase.taps), per_group):
            taps = row_phase.taps[first : first + per_group]
            keys = [tap_row * width + tap for tap_row, _ in taps for tap in range(width)]
            if offset_ref is not None and not first:
                keys.append(_OFFSET)
            total = {key: jnp.zeros(out_ref.shape[1:], jnp.float32) for key in keys}
            if unroll:
                for m in range(row_phase.count):
                    total = add_row(m, taps, total)
            else:
                total = lax.fori_loop(
                    0, row_phase.count, functools.partial(_flip(add_row), taps), total
                )
            if _OFFSET in total:
                offset_ref[...] += total.pop(_OFFSET)
            for key, value in total.items():
                out_ref[key] += value

    _repeat(images // IMAGES, one_register, False)


def _flip(add_row):
    return lambda taps, m, total: add_row(m, taps, total)
