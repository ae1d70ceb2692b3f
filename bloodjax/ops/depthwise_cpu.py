"""Depthwise convolution on CPU: sums of shifted slices, or Toeplitz matrices, by map size.

XLA's CPU back end runs a grouped convolution one group at a time: tens to hundreds of times slower
than it need be. This module computes the same sums in one of two other forms:

- *shifted*: a sum over kernel taps of the shifted input, which XLA fuses into one loop. Best for
  maps of more than `_TOEPLITZ_PIXELS` pixels.
- *Toeplitz*: on small maps most taps of a 7x7 kernel fall outside; one matrix of
  [pixels in, pixels out] a channel, and a batched matrix product, do only the useful work.

Automatic differentiation of the shifted sum would be slow again (one padded add a tap), so the
gradients are written out: the input's is a depthwise convolution of the dilated gradient with the
flipped kernel; the kernel's is a correlation of input and gradient, example by example, so that
both stay in cache.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

_TOEPLITZ_PIXELS = 49  # measured on x86: at 7x7 the forms tie, at 6x6 and below Toeplitz wins


def forward(x, kernel, *, stride, padding):
    """The convolution, in the form that suits the map's size."""
    if use_toeplitz(x, kernel, stride):
        return _toeplitz(x, kernel, padding)
    return shifted(x, kernel, stride, padding)


def backward(x, kernel, grad, *, stride, padding):
    """The input's and the kernel's gradients, in the forms that suit the map's size."""
    rows, columns = kernel.shape[:2]
    if use_toeplitz(x, kernel, stride):
        kernel_grad = _kernel_grad_toeplitz(x, grad, rows, columns, padding)
    else:
        kernel_grad = _kernel_grad_by_example(x, grad, rows, columns, stride, padding)
    # The transposed convolution: dilate by the stride, flip the kernel, swap the padding's role.
    back = []
    for size, out, k, (before, _) in zip(
        x.shape[1:3], grad.shape[1:3], (rows, columns), padding, strict=True
    ):
        dilated = (out - 1) * stride + 1
        back.append((k - 1 - before, size + before - dilated))
    dilated = _dilate(grad, stride)
    x_grad = forward(dilated, kernel[::-1, ::-1], stride=1, padding=tuple(back))
    return x_grad, kernel_grad.astype(kernel.dtype)


def use_toeplitz(x, kernel, stride):
    """Whether the Toeplitz form is the faster one."""
    _, height, width, _ = x.shape
    return stride == 1 and height * width <= _TOEPLITZ_PIXELS and kernel.shape[0] >= 5


def _dilate(x, stride):
    if stride == 1:
        return x
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)))


def _taps(size, out, k, stride, before):
    """The kernel offsets along one axis that touch the input at all."""
    last = stride * (out - 1)
    return [i for i in range(k) if i - before < size and i - before + last >= 0]


def pad(x, padding):
    """Zeros around height and width."""
    # lax.pad, because a transposed convolution's padding can be negative.
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))


def geometry(x, rows, columns, stride, padding):
    """Output height and width, and the taps that matter along each axis."""
    out, taps = [], []
    for size, k, (before, after) in zip(x.shape[1:3], (rows, columns), padding, strict=True):
        out.append((size + before + after - k) // stride + 1)
        taps.append(_taps(size, out[-1], k, stride, before))
    return out, taps


def shifted(x, kernel, stride, padding):
    """The convolution as a sum over taps of the shifted input."""
    (height, width), (rows, columns) = geometry(x, *kernel.shape[:2], stride, padding)
    padded = pad(x, padding)
    total = jnp.zeros((), jnp.float32)
    for i in rows:
        for j in columns:
            window = padded[
                :,
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            tap = kernel[i, j].astype(jnp.float32)
            total = total + window.astype(jnp.float32) * tap[None, None, None]
    return total.astype(x.dtype)


def _kernel_grad_by_example(x, grad, rows, columns, stride, padding):
    (height, width), (row_taps, column_taps) = geometry(x, rows, columns, stride, padding)
    padded = pad(x, padding)

    def add_example(b, total):
        xb = lax.dynamic_index_in_dim(padded, b, 0, keepdims=False).astype(jnp.float32)
        gb = lax.dynamic_index_in_dim(grad, b, 0, keepdims=False).astype(jnp.float32)
        windows = (
            xb[
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            for i in row_taps
            for j in column_taps
        )
        return total + jnp.stack([jnp.sum(window * gb, (0, 1)) for window in windows])

    zeros = jnp.zeros((len(row_taps) * len(column_taps), x.shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, x.shape[0], add_example, zeros)
    sums = sums.reshape(len(row_taps), len(column_taps), -1)
    whole = jnp.zeros((rows, columns, x.shape[-1]), jnp.float32)
    return whole.at[row_taps[0] : row_taps[-1] + 1, column_taps[0] : column_taps[-1] + 1].set(sums)


@functools.cache
def _toeplitz_taps(height, width, rows, columns, padding):
    """For (pixel in, pixel out): the kernel tap that joins them, or rows * columns for none."""
    (top, bottom), (left, right) = padding
    out_height, out_width = height + top + bottom - rows + 1, width + left + right - columns + 1
    p, q, a, b = np.ix_(range(height), range(width), range(out_height), range(out_width))
    i, j = p - a + top, q - b + left
    inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
    taps = np.where(inside, i * columns + j, rows * columns)
    return taps.reshape(height * width, out_height * out_width).astype(np.int32)


def _toeplitz(x, kernel, padding):
    batch, height, width, channels = x.shape
    rows, columns = kernel.shape[:2]
    taps = _toeplitz_taps(height, width, rows, columns, padding)
    zero = jnp.zeros((1, channels), kernel.dtype)
    matrices = jnp.concatenate([kernel.reshape(-1, channels), zero])[taps]
    out = jnp.einsum(
        "bpc,pqc->bqc",
        x.reshape(batch, -1, channels),
        matrices,
        preferred_element_type=jnp.float32,
    )
    out_height = height + sum(padding[0]) - rows + 1
    return out.reshape(batch, out_height, -1, channels).astype(x.dtype)


def _kernel_grad_toeplitz(x, grad, rows, columns, padding):
    batch, height, width, channels = x.shape
    taps = _toeplitz_taps(height, width, rows, columns, padding)
    joint = jnp.einsum(
        "bpc,bqc->pqc",
        x.reshape(batch, -1, channels),
        grad.reshape(batch, -1, channels),
        preferred_element_type=jnp.float32,
    )
    # Each tap's gradient is the sum over the pixel pairs that it joins: a 0/1 matrix product.
    joins = np.eye(rows * columns + 1, dtype=np.float32)[taps.ravel()][:, :-1]
    sums = jnp.einsum("nk,nc->kc", jnp.asarray(joins), joint.reshape(-1, channels))
    return sums.reshape(rows, columns, channels)
