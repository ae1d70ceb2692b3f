"""Depthwise convolution as Pallas kernels, which Mosaic compiles for TPUs.

A TPU's registers hold 8 x 128 values, here 8 images by 128 channels of one pixel. Height and width
are then plain indices: a shifted, strided or dilated map costs nothing, and all multiplications are
elementwise. XLA's own grouped convolution instead multiplies by 128 x 128 diagonal matrices, one
per tap and pixel.

One program computes all pixels of a block of images and channels. It converts the map to float32
in scratch memory once. Each output row is a sum over taps in registers. Maps with few pixels are
unrolled, so that no tap outside the map is computed; on larger ones the rows are a loop, and rows
of zeros are added above and below the map.

The input gradient is the same correlation with other taps: with a stride, one for each phase
(position modulo the stride) of the input's pixels. The kernel gradient has a sum for each tap,
which stays in registers while the rows are visited.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

IMAGES = 8  # per register; the batch must be a multiple of it
_CHANNELS = 128  # per register
_COLUMNS = 24  # output pixels of a row whose sums are in registers at the same time
_OFFSET = -1  # key of the sum of the gradients themselves
_KERNEL_SUMS = 25  # taps whose sums are in registers at the same time
_UNROLLED = 2500  # multiplications per register of a map that is unrolled, at most
_VMEM_BYTES = 16 * 2**20  # of a program, by default
_BLOCK_BYTES = 3 * 2**20  # of the input of a program that computes the full batch, at most


@dataclasses.dataclass(frozen=True)
class _Phase:
    """The output positions `out_step * m + out_start` of an axis, for m < count.

    Position m is a sum over taps of (index of the tap) times the input at `in_step * m + shift`.
    """

    count: int
    out_step: int
    out_start: int
    in_step: int
    taps: tuple[tuple[int, int], ...]  # (index, shift), by increasing shift


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Height or width of a correlation."""

    size: int  # of the input
    out: int
    phases: tuple[_Phase, ...]

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


def _forward_axis(size, kernel, stride, padding) -> _Axis:
    before, after = padding
    out = (size + before + after - kernel) // stride + 1
    taps = tuple((i, i - before) for i in range(kernel))
    return _Axis(size, out, (_Phase(out, 1, 0, stride, taps),))


def _input_grad_axis(size, out, kernel, stride, padding) -> _Axis:
    """From an output gradient of `out` positions to an input of `size`."""
    phases = []
    for start in range(min(stride, size)):
        offset = start + padding[0]
        taps = [(i, (offset - i) // stride) for i in range(kernel) if (offset - i) % stride == 0]
        taps = tuple(sorted(taps, key=lambda tap: tap[1]))
        phases.append(_Phase(-(-(size - start) // stride), stride, start, 1, taps))
    return _Axis(out, size, tuple(phases))


def _images(batch: int, bytes_each: int) -> int:
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


def _correlate_block(
    convert, write, kernel_ref, scratch, images: int, *, rows: _Axis, columns: _Axis, width, unroll
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


def _wide(ref, row, part):
    return ref[row, :, part].astype(jnp.float32)


def _correlate_kernel(x_ref, kernel_ref, *refs, **axes):
    """A correlation; `refs` are a map to add, if any, the output and scratch memory."""
    *added, out_ref, scratch = refs

    def write(row, places, values, part):
        for column, value in zip(places, values, strict=True):
            for ref in added:
                value = value + ref[row, column, part].astype(jnp.float32)
            out_ref[row, column, part] = value.astype(out_ref.dtype)

    convert = functools.partial(_wide, x_ref)
    _correlate_block(convert, write, kernel_ref, scratch, x_ref.shape[2], **axes)


def _spread(kernel):
    """The kernel [rows, columns, channels] as float32 [taps, 8, channels]."""
    taps = kernel.shape[0] * kernel.shape[1]
    flat = kernel.astype(jnp.float32).reshape(taps, 1, kernel.shape[2])
    return jnp.broadcast_to(flat, (taps, IMAGES, kernel.shape[2]))


def _memory(blocks, scratch, dtype) -> int:
    """Vector memory of a program, in bytes; what it does not reserve keeps XLA's own arrays.

    Args:
      blocks: pixels times images of each block; the next block is copied meanwhile, so all twice.
      scratch: pixels of each scratch array, which has 8 images in float32.
      dtype: of the blocks.
    """
    used = _CHANNELS * (sum(blocks) * jnp.dtype(dtype).itemsize + IMAGES * 4 * sum(scratch))
    return max(_VMEM_BYTES, used + used // 4)


def _cost(x, out, macs: int) -> pl.CostEstimate:
    moved = (x.size + math.prod(out.shape)) * x.dtype.itemsize
    return pl.CostEstimate(flops=2 * macs, bytes_accessed=moved, transcendentals=0)


def _correlate(x, kernel, rows: _Axis, columns: _Axis, interpret, name: str, added=None):
    batch, height, width, channels = x.shape
    block = min(channels, _CHANNELS)
    images = _images(batch, height * width * block * x.dtype.itemsize)
    macs = rows.products * columns.products
    unroll = macs <= _UNROLLED
    margins = (0, 0) if unroll else rows.margins()
    out = jax.ShapeDtypeStruct((rows.out, columns.out, batch, channels), x.dtype)
    out_block = pl.BlockSpec((rows.out, columns.out, images, block), lambda c, b: (0, 0, b, c))
    extra = [] if added is None else [added.transpose(1, 2, 0, 3)]
    result = pl.pallas_call(
        functools.partial(
            _correlate_kernel,
            rows=rows,
            columns=columns,
            width=kernel.shape[1],
            unroll=unroll,
        ),
        out_shape=out,
        grid=(pl.cdiv(channels, block), batch // images),
        in_specs=[
            pl.BlockSpec((height, width, images, block), lambda c, b: (0, 0, b, c)),
            pl.BlockSpec(
                (kernel.shape[0] * kernel.shape[1], IMAGES, block), lambda c, b: (0, 0, c)
            ),
            *(out_block for _ in extra),
        ],
        out_specs=out_block,
        scratch_shapes=[
            pltpu.VMEM((height + sum(margins), width, IMAGES, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=_memory(
                2
                * [height * width * images, *(1 + len(extra)) * [rows.out * columns.out * images]],
                [(height + sum(margins)) * width],
                x.dtype,
            ),
        ),
        cost_estimate=_cost(x, out, macs * batch * channels),
        interpret=interpret,
        name=name,
    )(x.transpose(1, 2, 0, 3), _spread(kernel), *extra)
    return result.transpose(2, 0, 1, 3)


def forward(x, kernel, *, stride, padding, interpret=False):
    """The convolution; arguments as in `depthwise.depthwise_conv`."""
    rows, columns = (
        _forward_axis(size, k, stride, pads)
        for size, k, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return _correlate(x, kernel, rows, columns, interpret, "depthwise")


def input_grad(grad, kernel, added=None, *, size, stride, padding, interpret=False):
    """Gradient of an input of `size` (height, width), given the output gradient.

    Args:
      grad: output gradient.
      kernel: kernel, as in `depthwise.depthwise_conv`.
      added: gradient of the same input from another layer, to which the result is added.
      size: height and width of the input.
      stride: stride of both axes.
      padding: zeros ((top, bottom), (left, right)).
      interpret: whether to interpret the kernel, on any platform.
    """
    rows, columns = (
        _input_grad_axis(n, out, k, stride, pads)
        for n, out, k, pads in zip(size, grad.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    name = "depthwise_input_grad" if added is None else "depthwise_input_grad_added"
    return _correlate(grad, kernel, rows, columns, interpret, name, added)


def _kernel_grad_block(
    convert_x,
    convert_grad,
    out_ref,
    x_scratch,
    grad_scratch,
    images: int,
    *,
    rows: _Axis,
    columns: _Axis,
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


def _kernel_grad_kernel(x_ref, grad_ref, out_ref, x_scratch, grad_scratch, **axes):
    converts = (functools.partial(_wide, ref) for ref in (x_ref, grad_ref))
    _kernel_grad_block(*converts, out_ref, x_scratch, grad_scratch, x_ref.shape[2], **axes)


def _flip(add_row):
    return lambda taps, m, total: add_row(m, taps, total)


def kernel_grad(x, grad, *, window, stride, padding, interpret=False):
    """The float32 gradient of a kernel of `window` (rows, columns), given the output gradient."""
    batch, height, width, channels = x.shape
    rows, columns = (
        _forward_axis(size, k, stride, pads)
        for size, k, pads in zip((height, width), window, padding, strict=True)
    )
    block = min(channels, _CHANNELS)
    images = _images(batch, height * width * block * x.dtype.itemsize)
    macs = rows.products * columns.products
    unroll = macs <= _UNROLLED
    margins = (0, 0) if unroll else rows.margins()
    taps = window[0] * window[1]
    sums = pl.pallas_call(
        functools.partial(_kernel_grad_kernel, rows=rows, columns=columns, unroll=unroll),
        out_shape=jax.ShapeDtypeStruct((taps, IMAGES, channels), jnp.float32),
        grid=(pl.cdiv(channels, block), batch // images),
        in_specs=[
            pl.BlockSpec((height, width, images, block), lambda c, b: (0, 0, b, c)),
            pl.BlockSpec((rows.out, columns.out, images, block), lambda c, b: (0, 0, b, c)),
        ],
        out_specs=pl.BlockSpec((taps, IMAGES, block), lambda c, b: (0, 0, c)),
        scratch_shapes=[
            pltpu.VMEM((height + sum(margins), width, IMAGES, block), jnp.float32),
            pltpu.VMEM((rows.out, columns.out, IMAGES, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_memory(
                2 * [height * width * images, rows.out * columns.out * images],
                [(height + sum(margins)) * width, rows.out * columns.out],
                x.dtype,
            ),
        ),
        cost_estimate=_cost(x, grad, macs * batch * channels),
        interpret=interpret,
        name="depthwise_kernel_grad",
    )(x.transpose(1, 2, 0, 3), grad.transpose(1, 2, 0, 3))
    return jnp.sum(sums, axis=1).reshape(*window, channels)


def _logistic(x):
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def _slope(x):
    """The derivative of SiLU."""
    logistic = _logistic(x)
    return logistic * (1.0 + x * (1.0 - logistic))


def _input(x_ref, shift_ref, silu: bool):
    """Function of a row and images that gives the input of the convolution."""

    def convert(row, part):
        x = _wide(x_ref, row, part)
        if not silu:
            return x
        x = x + shift_ref[...][None]
        return x * _logistic(x)

    return convert


def _silu_forward_kernel(
    x_ref,
    shift_ref,
    kernel_ref,
    offset_ref,
    out_ref,
    active_ref,
    mean_ref,
    scratch,
    *,
    silu,
    **axes,
):
    mean_ref[...] = jnp.zeros(mean_ref.shape, jnp.float32)
    pixels = axes["rows"].out * axes["columns"].out

    def write(row, places, values, part):
        total = jnp.zeros(scratch.shape[2:], jnp.float32)
        for column, value in zip(places, values, strict=True):
            shifted = value + offset_ref[...]
            active = shifted * _logistic(shifted)
            total = total + active
            out_ref[row, column, part] = shifted.astype(out_ref.dtype)
            active_ref[row, column, part] = active.astype(active_ref.dtype)
        mean_ref[part] += total * (1.0 / pixels)

    convert = _input(x_ref, shift_ref, silu)
    _correlate_block(convert, write, kernel_ref, scratch, x_ref.shape[2], **axes)


def _grad_of_shifted(out_ref, active_grad_ref, mean_grad_ref):
    """Function of a row and images that gives the gradient of the convolution plus its offset."""

    def convert(row, part):
        grad = _wide(active_grad_ref, row, part) + mean_grad_ref[part][None]
        return grad * _slope(_wide(out_ref, row, part))

    return convert


def _silu_input_grad_kernel(
    out_ref,
    active_grad_ref,
    mean_grad_ref,
    x_ref,
    shift_ref,
    kernel_ref,
    grad_ref,
    shift_grad_ref,
    scratch,
    *,
    silu: bool,
    **axes,
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        shift_grad_ref[...] = jnp.zeros(shift_grad_ref.shape, jnp.float32)

    def write(row, places, values, part):
        total = jnp.zeros(scratch.shape[2:], jnp.float32)
        for column, value in zip(places, values, strict=True):
            if silu:
                x = x_ref[row, column, part].astype(jnp.float32) + shift_ref[...]
                value = value * _slope(x)
                total = total + value
            grad_ref[row, column, part] = value.astype(grad_ref.dtype)
        if silu:
            shift_grad_ref[...] += total

    convert = _grad_of_shifted(out_ref, active_grad_ref, mean_grad_ref)
    _correlate_block(convert, write, kernel_ref, scratch, out_ref.shape[2], **axes)


def _silu_kernel_grad_kernel(
    out_ref,
    active_grad_ref,
    mean_grad_ref,
    x_ref,
    shift_ref,
    kernel_grad_ref,
    offset_grad_ref,
    x_scratch,
    grad_scratch,
    *,
    silu: bool,
    **axes,
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        offset_grad_ref[...] = jnp.zeros(offset_grad_ref.shape, jnp.float32)

    _kernel_grad_block(
        _input(x_ref, shift_ref, silu),
        _grad_of_shifted(out_ref, active_grad_ref, mean_grad_ref),
        kernel_grad_ref,
        x_scratch,
        grad_scratch,
        x_ref.shape[2],
        offset_ref=offset_grad_ref,
        **axes,
    )


def _blocks(size, images, block):
    return pl.BlockSpec((*size, images, block), lambda c, b: (0, 0, b, c))


def _silu_call(
    kernel_function, operands, specs, outs, out_specs, maps, scratch, axes, grid, interpret, name
):
    """Calls a kernel on blocks whose maps have the sizes `maps`, with `scratch` sizes."""
    rows, columns = axes["rows"], axes["columns"]
    pixels = [math.prod(size) for size in maps]
    images = specs[0].block_shape[2]
    macs = rows.products * columns.products
    batch, channels = operands[0].shape[2:]
    return pl.pallas_call(
        functools.partial(kernel_function, **axes),
        out_shape=outs,
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        scratch_shapes=[
            pltpu.VMEM((*size, IMAGES, specs[0].block_shape[3]), jnp.float32) for size in scratch
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_memory(
                2 * [size * images for size in pixels],
                [math.prod(size) for size in scratch],
                operands[0].dtype,
            ),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * macs * batch * channels,
            bytes_accessed=2 * sum(pixels) * batch * channels,
            transcendentals=sum(pixels) * batch * channels,
        ),
        interpret=interpret,
        name=name,
    )(*operands)


def silu_forward(x, shift, kernel, offset, *, stride, padding, silu, interpret=False):
    """Convolution of SiLU plus offset, SiLU of it, and its mean over the pixels in float32.

    Args:
      x: input, as all maps [batch, height, width, channels].
      shift: float32 [channels], added to the input before SiLU.
      kernel: kernel, as in `depthwise.depthwise_conv`.
      offset: float32 [channels], added to the convolution.
      stride: stride of both axes.
      padding: zeros ((top, bottom), (left, right)).
      silu: whether the input is shifted and goes through SiLU.
      interpret: whether to interpret the kernel, on any platform.
    """
    rows, columns = (
        _forward_axis(size, k, stride, pads)
        for size, k, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    batch, height, width, channels = x.shape
    block = min(channels, _CHANNELS)
    out = (rows.out, columns.out)
    images = _images(batch, max(height * width, 2 * math.prod(out)) * block * x.dtype.itemsize)
    unroll = rows.products * columns.products <= _UNROLLED
    margin = 0 if unroll else sum(rows.margins())
    mapped = jax.ShapeDtypeStruct((*out, batch, channels), x.dtype)
    mean = jax.ShapeDtypeStruct((batch, channels), jnp.float32)
    shifted, active, mean = _silu_call(
        functools.partial(_silu_forward_kernel, silu=silu),
        [x.transpose(1, 2, 0, 3), _offset(shift), _spread(kernel), _offset(offset)],
        [
            _blocks((height, width), images, block),
            pl.BlockSpec((IMAGES, block), lambda c, b: (0, c)),
            pl.BlockSpec((math.prod(kernel.shape[:2]), IMAGES, block), lambda c, b: (0, 0, c)),
            pl.BlockSpec((IMAGES, block), lambda c, b: (0, c)),
        ],
        [mapped, mapped, mean],
        [
            _blocks(out, images, block),
            _blocks(out, images, block),
            pl.BlockSpec((images, block), lambda c, b: (b, c)),
        ],
        [(height, width), out, out],
        [(height + margin, width)],
        {"rows": rows, "columns": columns, "width": kernel.shape[1], "unroll": unroll},
        (pl.cdiv(channels, block), batch // images),
        interpret,
        "depthwise_silu",
    )
    return shifted.transpose(2, 0, 1, 3), active.transpose(2, 0, 1, 3), mean


def _offset(offset):
    return jnp.broadcast_to(offset.astype(jnp.float32)[None], (IMAGES, len(offset)))


def silu_backward(
    shifted, active_grad, mean_grad, x, shift, kernel, *, stride, padding, silu, interpret=False
):
    """Gradients of `silu_forward`'s `x`, `shift`, `kernel` and `offset`, the last three in float32.

    Args:
      shifted: first result of `silu_forward`.
      active_grad: gradient of the second.
      mean_grad: gradient of the third.
      x: as in `silu_forward`.
      shift: as in `silu_forward`.
      kernel: as in `silu_forward`.
      stride: as in `silu_forward`.
      padding: as in `silu_forward`.
      silu: as in `silu_forward`.
      interpret: as in `silu_forward`.
    """
    batch, height, width, channels = x.shape
    size, out, window = (height, width), shifted.shape[1:3], kernel.shape[:2]
    block = min(channels, _CHANNELS)
    images = _images(batch, 2 * height * width * block * x.dtype.itemsize)
    grid = (pl.cdiv(channels, block), batch // images)
    operands = [a.transpose(1, 2, 0, 3) for a in (shifted, active_grad, x)]
    operands.insert(2, mean_grad.astype(jnp.float32) * (1.0 / math.prod(out)))
    specs = [_blocks(s, images, block) for s in (out, out, size)]
    specs.insert(2, pl.BlockSpec((images, block), lambda c, b: (b, c)))
    per_channel = pl.BlockSpec((IMAGES, block), lambda c, b: (0, c))
    operands.append(_offset(shift))
    specs.append(per_channel)
    sums = jax.ShapeDtypeStruct((IMAGES, channels), jnp.float32)

    def axes(axis_of, **more):
        rows, columns = axis_of
        unroll = rows.products * columns.products <= _UNROLLED
        return {"rows": rows, "columns": columns, "unroll": unroll, **more}

    chosen = axes(
        (
            _input_grad_axis(n, o, k, stride, pads)
            for n, o, k, pads in zip(size, out, window, padding, strict=True)
        ),
        width=window[1],
    )
    margin = 0 if chosen["unroll"] else sum(chosen["rows"].margins())
    taps = math.prod(window)
    x_grad, shift_grad = _silu_call(
        functools.partial(_silu_input_grad_kernel, silu=silu),
        [*operands, _spread(kernel)],
        [*specs, pl.BlockSpec((taps, IMAGES, block), lambda c, b: (0, 0, c))],
        [jax.ShapeDtypeStruct((*size, batch, channels), x.dtype), sums],
        [_blocks(size, images, block), per_channel],
        [out, out, size, size],
        [(out[0] + margin, out[1])],
        chosen,
        grid,
        interpret,
        "depthwise_silu_input_grad",
    )
    chosen = axes(
        _forward_axis(n, k, stride, pads) for n, k, pads in zip(size, window, padding, strict=True)
    )
    margin = 0 if chosen["unroll"] else sum(chosen["rows"].margins())
    kernel_grad, offset_grad = _silu_call(
        functools.partial(_silu_kernel_grad_kernel, silu=silu),
        operands,
        specs,
        [jax.ShapeDtypeStruct((taps, IMAGES, channels), jnp.float32), sums],
        [pl.BlockSpec((taps, IMAGES, block), lambda c, b: (0, 0, c)), per_channel],
        [out, out, size],
        [(height + margin, width), out],
        chosen,
        grid,
        interpret,
        "depthwise_silu_kernel_grad",
    )
    kernel_grad = jnp.sum(kernel_grad, axis=1).reshape(*window, channels)
    shift_grad, offset_grad = (jnp.sum(a, axis=0) for a in (shift_grad, offset_grad))
    return x_grad.transpose(2, 0, 1, 3), shift_grad, kernel_grad, offset_grad
