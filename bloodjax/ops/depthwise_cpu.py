"""Depthwise convolution on CPU: sums of shifted slices, or Toeplitz matrices, by map size.

XLA's CPU back end runs a grouped convolution one group at a time: tens to hundreds of times slower
than it need be. This module computes the same sums in one of two other forms:

- *shifted*: a sum over kernel taps of the shifted input, which XLA makes one loop of. Best where
  the map has more pixels than the kernel has taps.
- *Toeplitz*: on smaller maps most taps of a 7x7 kernel fall outside; one matrix of
  [pixels in, pixels out] a channel, and a batched matrix product, do only the useful work.

Automatic differentiation of the shifted sum would be slow again (one padded add a tap), so the
gradients are written out. The input's is a sum of shifted slices of the output's gradient; of a
strided convolution, one such sum for each phase of the input's pixels, so that no zero of a dilated
map is multiplied. The kernel's adds a few pixels' outer products at a time, as one expression: XLA
would copy every slice for a reduction.
"""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

# Pixels whose products are added in one loop's body: more only take longer to compile, and above
# about 64 they are slower.
_UNROLLED = 24
_WIDEST = 64


def forward(x, kernel, *, stride, padding):
    """The convolution, in the form that suits the map's size."""
    if use_toeplitz(x, kernel, stride):
        return _toeplitz(x, kernel, padding)
    # Without a barrier XLA computes what comes before, and the padding, anew for many of the taps.
    return shifted(lax.optimization_barrier(pad(x, padding)), kernel, stride, ((0, 0), (0, 0)))


def backward(x, kernel, grad, *, stride, padding):
    """The input's and the kernel's gradients, in the forms that suit the map's size."""
    window, size = kernel.shape[:2], x.shape[1:3]
    if use_toeplitz(x, kernel, stride):
        x_grad = _toeplitz(grad, kernel[::-1, ::-1], _back(size, grad, window, padding))
        kernel_grad = _kernel_grad_toeplitz(x, grad, *window, padding)
    else:
        x_grad = input_grad(grad, kernel, size=size, stride=stride, padding=padding)
        kernel_grad = _kernel_grad(x, grad, *window, stride, padding)
    return x_grad, kernel_grad.astype(kernel.dtype)


def use_toeplitz(x, kernel, stride):
    """Whether the Toeplitz form is the faster one; a 3x3 kernel's matrices are hardly smaller."""
    _, height, width, _ = x.shape
    taps = kernel.shape[0] * kernel.shape[1]
    return stride == 1 and height * width <= taps and taps > 9


def _back(size, grad, window, padding):
    """The padding of the convolution that is the input's gradient, at stride 1."""
    return tuple(
        (k - 1 - before, n + before - out)
        for n, out, k, (before, _) in zip(size, grad.shape[1:3], window, padding, strict=True)
    )


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


def _window(x, row, column, stride, size):
    """`size` (height, width) pixels from (row, column) on, every `stride`-th."""
    height, width = ((n - 1) * stride + 1 for n in size)
    return x[:, row : row + height : stride, column : column + width : stride]


def _sum_over_taps(windows, taps):
    """The float32 sum of the windows, each times its tap: a factor a channel."""
    total = jnp.zeros((), jnp.float32)
    for window, tap in zip(windows, taps, strict=True):
        total = total + window.astype(jnp.float32) * tap.astype(jnp.float32)[None, None, None]
    return total


def shifted(x, kernel, stride, padding):
    """The convolution as a sum over taps of the shifted input."""
    size, taps = geometry(x, *kernel.shape[:2], stride, padding)
    padded, taps = pad(x, padding), list(itertools.product(*taps))
    windows = (_window(padded, *tap, stride, size) for tap in taps)
    return _sum_over_taps(windows, (kernel[tap] for tap in taps)).astype(x.dtype)


def _phase_taps(phase, k, stride, before):
    """Along one axis, the taps that join input pixels `phase + stride * m` with an output pixel,
    each with the latter's offset from m.
    """
    first = (phase + before) % stride
    return [(i, (phase + before - i) // stride) for i in range(first, k, stride)]


def input_grad(grad, kernel, *, size, stride, padding):
    """The gradient by an input of `size` (height, width), given the output's."""
    pixels = [-(-n // stride) for n in size]  # of each phase
    axes = [
        [_phase_taps(phase, k, stride, before) for phase in range(stride)]
        for k, (before, _) in zip(kernel.shape[:2], padding, strict=True)
    ]
    margins = []
    for taps, n, out in zip(axes, pixels, grad.shape[1:3], strict=True):
        offsets = [offset for phase in taps for _, offset in phase]
        margins.append((max(0, -min(offsets)), max(0, n + max(offsets) - out)))
    padded = lax.optimization_barrier(pad(grad, margins))

    def one_phase(rows, columns):
        joined = list(itertools.product(rows, columns))
        windows = (
            _window(padded, margins[0][0] + row, margins[1][0] + column, 1, pixels)
            for (_, row), (_, column) in joined
        )
        total = _sum_over_taps(windows, (kernel[i, j] for (i, _), (j, _) in joined))
        shape = (grad.shape[0], *pixels, grad.shape[-1])
        return jnp.broadcast_to(total, shape).astype(grad.dtype)

    if stride == 1:
        return one_phase(axes[0][0], axes[1][0])
    phases = [jnp.stack([one_phase(rows, columns) for columns in axes[1]], 3) for rows in axes[0]]
    whole = (grad.shape[0], stride * pixels[0], stride * pixels[1], grad.shape[-1])
    return jnp.stack(phases, 2).reshape(whole)[:, : size[0], : size[1]]


def _kernel_grad(x, grad, rows, columns, stride, padding):
    """The float32 gradient by a kernel of (rows, columns), a tile of the map after the other."""
    size, taps = geometry(x, rows, columns, stride, padding)
    across = size[1] if size[1] <= _WIDEST else _UNROLLED
    tile = (min(size[0], max(1, _UNROLLED // across)), across)
    tiles = tuple(-(-n // t) for n, t in zip(size, tile, strict=True))
    # Zeros fill the last tiles up. Taps that never touch the input are left out.
    whole = [n * t for n, t in zip(tiles, tile, strict=True)]
    grad = pad(grad, [(0, n - out) for n, out in zip(whole, size, strict=True)])
    margins = [
        (before - tap[0], (n - 1) * stride + tap[-1] + 1 - before - length)
        for n, length, tap, (before, _) in zip(whole, x.shape[1:3], taps, padding, strict=True)
    ]
    halves = 2 - x.shape[0] % 2  # of the batch: one for each of two threads
    x, grad = (a.reshape(halves, -1, *a.shape[1:]) for a in (pad(x, margins), grad))
    window = [len(tap) for tap in taps]
    reach = [(t - 1) * stride + w for t, w in zip(tile, window, strict=True)]

    def cut(a, example, start, size):
        size = (halves, 1, *size, a.shape[-1])
        return lax.dynamic_slice(a, (0, example, *start, 0), size)[:, 0].astype(jnp.float32)

    def add_tile(index, total):
        example, place = index // (tiles[0] * tiles[1]), index % (tiles[0] * tiles[1])
        start = [p * t for p, t in zip((place // tiles[1], place % tiles[1]), tile, strict=True)]
        pixels = cut(x, example, [stride * p for p in start], reach)
        grads = cut(grad, example, start, tile)
        for i, j in itertools.product(*map(range, tile)):
            ends = [stride * n + w for n, w in zip((i, j), window, strict=True)]
            part = pixels[:, stride * i : ends[0], stride * j : ends[1]]
            total = total + part * grads[:, i, j][:, None, None]
        return total

    zeros = jnp.zeros((halves, *window, x.shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, x.shape[1] * tiles[0] * tiles[1], add_tile, zeros).sum(0)
    outside = [(tap[0], k - 1 - tap[-1]) for tap, k in zip(taps, (rows, columns), strict=True)]
    return pad(sums[None], outside)[0]


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
