"""Depthwise convolution as Pallas kernels, which Mosaic compiles for TPUs.

One program computes all pixels of a block of images and channels, see `depthwise_blocks`. XLA's own
grouped convolution instead multiplies by 128 x 128 diagonal matrices, one per tap and pixel.
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
    Axis,
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


def _correlate_kernel(x_ref, kernel_ref, *refs, **axes):
    """A correlation; `refs` are a map to add, if any, the output and scratch memory."""
    *added, out_ref, scratch = refs

    def write(row, places, values, part):
        for column, value in zip(places, values, strict=True):
            for ref in added:
                value = value + ref[row, column, part].astype(jnp.float32)
            out_ref[row, column, part] = value.astype(out_ref.dtype)

    convert = functools.partial(wide, x_ref)
    correlate_block(convert, write, kernel_ref, scratch, x_ref.shape[2], **axes)


def _cost(x, out, macs: int) -> pl.CostEstimate:
    moved = (x.size + math.prod(out.shape)) * x.dtype.itemsize
    return pl.CostEstimate(flops=2 * macs, bytes_accessed=moved, transcendentals=0)


def _correlate(x, kernel, rows: Axis, columns: Axis, interpret, name: str, added=None):
    batch, height, width, channels = x.shape
    block = min(channels, CHANNELS)
    images = images_per_program(batch, height * width * block * x.dtype.itemsize)
    macs = rows.products * columns.products
    unroll = is_unrolled(rows, columns)
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
            vmem_limit_bytes=memory(
                2
                * [height * width * images, *(1 + len(extra)) * [rows.out * columns.out * images]],
                [(height + sum(margins)) * width],
                x.dtype,
            ),
        ),
        cost_estimate=_cost(x, out, macs * batch * channels),
        interpret=interpret,
        name=name,
    )(x.transpose(1, 2, 0, 3), spread(kernel), *extra)
    return result.transpose(2, 0, 1, 3)


def forward(x, kernel, *, stride, padding, interpret=False):
    """The convolution; arguments as in `depthwise.depthwise_conv`."""
    rows, columns = (
        forward_axis(size, k, stride, pads)
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
        input_grad_axis(n, out, k, stride, pads)
        for n, out, k, pads in zip(size, grad.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    name = "depthwise_input_grad" if added is None else "depthwise_input_grad_added"
    return _correlate(grad, kernel, rows, columns, interpret, name, added)


def _kernel_grad_kernel(x_ref, grad_ref, out_ref, x_scratch, grad_scratch, **axes):
    converts = (functools.partial(wide, ref) for ref in (x_ref, grad_ref))
    kernel_grad_block(*converts, out_ref, x_scratch, grad_scratch, x_ref.shape[2], **axes)


def kernel_grad(x, grad, *, window, stride, padding, interpret=False):
    """The float32 gradient of a kernel of `window` (rows, columns), given the output gradient."""
    batch, height, width, channels = x.shape
    rows, columns = (
        forward_axis(size, k, stride, pads)
        for size, k, pads in zip((height, width), window, padding, strict=True)
    )
    block = min(channels, CHANNELS)
    images = images_per_program(batch, height * width * block * x.dtype.itemsize)
    macs = rows.products * columns.products
    unroll = is_unrolled(rows, columns)
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
            vmem_limit_bytes=memory(
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
