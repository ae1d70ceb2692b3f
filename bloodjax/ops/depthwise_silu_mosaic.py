"""Depthwise convolution between two SiLUs as Pallas kernels for TPUs.

The kernels are those of `depthwise_mosaic`, which also add the offsets before the SiLUs, compute
both SiLUs and their derivatives, and the mean over the pixels.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bloodjax.ops.depthwise_blocks import (
    CHANNELS,
    IMAGES,
    correlate_block,
    forward_axis,
    images_per_program,
    input_grad_axis,
    is_unrolled,
    kernel_grad_block,
    memory,
    spread,
    wide,
)


def _logistic(x):
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def _slope(x):
    """The derivative of SiLU."""
    logistic = _logistic(x)
    return logistic * (1.0 + x * (1.0 - logistic))


def _input(x_ref, shift_ref, silu: bool):
    """Function of a row and images that gives the input of the convolution."""

    def convert(row, part):
        x = wide(x_ref, row, part)
        if not silu:
            return x
        x = x + shift_ref[...][None]
        return x * _logistic(x)

    return convert


def _forward_kernel(
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
    correlate_block(convert, write, kernel_ref, scratch, x_ref.shape[2], **axes)


def _grad_of_shifted(out_ref, active_grad_ref, mean_grad_ref):
    """Function of a row and images that gives the gradient of the convolution plus its offset."""

    def convert(row, part):
        grad = wide(active_grad_ref, row, part) + mean_grad_ref[part][None]
        return grad * _slope(wide(out_ref, row, part))

    return convert


def _input_grad_kernel(
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
    correlate_block(convert, write, kernel_ref, scratch, out_ref.shape[2], **axes)


def _kernel_grad_kernel(
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

    kernel_grad_block(
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


def _call(
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
            vmem_limit_bytes=memory(
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


def forward(x, shift, kernel, offset, *, stride, padding, silu, interpret=False):
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
        forward_axis(size, k, stride, pads)
        for size, k, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    batch, height, width, channels = x.shape
    block = min(channels, CHANNELS)
    out = (rows.out, columns.out)
    images = images_per_program(
        batch, max(height * width, 2 * math.prod(out)) * block * x.dtype.itemsize
    )
    unroll = is_unrolled(rows, columns)
    margin = 0 if unroll else sum(rows.margins())
    mapped = jax.ShapeDtypeStruct((*out, batch, channels), x.dtype)
    mean = jax.ShapeDtypeStruct((batch, channels), jnp.float32)
    shifted, active, mean = _call(
        functools.partial(_forward_kernel, silu=silu),
        [x.transpose(1, 2, 0, 3), _offset(shift), spread(kernel), _offset(offset)],
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


def backward(
    shifted, active_grad, mean_grad, x, shift, kernel, *, stride, padding, silu, interpret=False
):
    """Gradients of `forward`'s `x`, `shift`, `kernel` and `offset`, the last three in float32.

    Args:
      shifted: first result of `forward`.
      active_grad: gradient of the second.
      mean_grad: gradient of the third.
      x: as in `forward`.
      shift: as in `forward`.
      kernel: as in `forward`.
      stride: as in `forward`.
      padding: as in `forward`.
      silu: as in `forward`.
      interpret: as in `forward`.
    """
    batch, height, width, channels = x.shape
    size, out, window = (height, width), shifted.shape[1:3], kernel.shape[:2]
    block = min(channels, CHANNELS)
    images = images_per_program(batch, 2 * height * width * block * x.dtype.itemsize)
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
        unroll = is_unrolled(rows, columns)
        return {"rows": rows, "columns": columns, "unroll": unroll, **more}

    chosen = axes(
        (
            input_grad_axis(n, o, k, stride, pads)
            for n, o, k, pads in zip(size, out, window, padding, strict=True)
        ),
        width=window[1],
    )
    margin = 0 if chosen["unroll"] else sum(chosen["rows"].margins())
    taps = math.prod(window)
    x_grad, shift_grad = _call(
        functools.partial(_input_grad_kernel, silu=silu),
        [*operands, spread(kernel)],
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
        forward_axis(n, k, stride, pads) for n, k, pads in zip(size, window, padding, strict=True)
    )
    margin = 0 if chosen["unroll"] else sum(chosen["rows"].margins())
    kernel_grad, offset_grad = _call(
        functools.partial(_kernel_grad_kernel, silu=silu),
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
