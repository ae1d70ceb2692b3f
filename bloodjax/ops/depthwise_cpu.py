"""Depthwise convolution on CPU: sums of shifted slices, or Toeplitz matrices on small maps.

XLA's CPU backend runs a grouped convolution one group at a time, which is tens to hundreds of times
slower than necessary. This module computes the same sums in one of two ways:

- *shifted*: a sum over kernel taps of the shifted input, which XLA fuses into one loop. Faster
  where the map has more pixels than the kernel has taps.
- *Toeplitz*: on smaller maps most taps of a 7x7 kernel fall outside the map. A batched matrix
  product with one matrix [input pixels, output pixels] per channel skips them.

Automatic differentiation of the shifted sum would be slow again, with one padded addition per tap,
so the gradients are written by hand. The input gradient is a sum of shifted slices of the output
gradient. With a stride there is one such sum per phase (position modulo stride) of the input's
pixels, so that the zeros of a dilated map are never multiplied. The kernel gradient adds the
products of a few pixels at a time in one expression, because XLA would copy each slice for a
reduction.
"""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

# Pixels whose products one loop body adds. More only take longer to compile.
_UNROLLED = 24
# Most images that `forward_alone` takes by shifted slices. Measured on x86: on maps of 3x3 and 6x6,
# a quarter to half of the time for one image or two, and more time for eight.
_FEW = 4
# Widest row that one loop body covers; above about 64 pixels it becomes slower.
_WIDEST = 64


def forward(x, kernel, *, stride, padding):
    """The convolution, by the faster method for the map's size."""
    if use_toeplitz(x, kernel, stride):
        return _toeplitz(x, kernel, padding)
    return _shifted(x, kernel, stride, padding)


def _shifted(x, kernel, stride, padding):
    # Without the barrier XLA recomputes the padding, and the operations before it, for many taps.
    return shifted(lax.optimization_barrier(pad(x, padding)), kernel, stride, ((0, 0), (0, 0)))


def forward_alone(x, kernel, *, stride, padding):
    """`forward` where no gradient follows: for a few images always by shifted slices.

    Their products do not outweigh building the matrices of the Toeplitz method from the kernel. A
    program that is exported has a symbolic number of images, which counts as many.
    """
    images = x.shape[0]
    many = not isinstance(images, int) or images > _FEW
    if many or not use_toeplitz(x, kernel, stride):
        return forward(x, kernel, stride=stride, padding=padding)
    return _shifted(x, kernel, stride, padding)


def backward(x, kernel, grad, *, stride, padding):
    """Gradients of input and kernel, by the faster method for the map's size."""
    window, size = kernel.shape[:2], x.shape[1:3]
    if use_toeplitz(x, kernel, stride):
        x_grad = _toeplitz(grad, kernel[::-1, ::-1], _back(size, grad, window, padding))
        kernel_grad = _kernel_grad_toeplitz(x, grad, *window, padding)
    else:
        x_grad = input_grad(grad, kernel, size=size, stride=stride, padding=padding)
        kernel_grad = _kernel_grad(x, grad, *window, stride, padding)
    return x_grad, kernel_grad.astype(kernel.dtype)


def use_toeplitz(x, kernel, stride):
    """Whether the Toeplitz method is faster. For a 3x3 kernel it saves hardly any work."""
    _, height, width, _ = x.shape
    taps = kernel.shape[0] * kernel.shape[1]
    return stride == 1 and height * width <= taps and taps > 9


def _back(size, grad, window, padding):
    """Padding of the convolution that computes the input gradient, at stride 1."""
    return tuple(
        (k - 1 - before, n + before - out)
        for n, out, k, (before, _) in zip(size, grad.shape[1:3], window, padding, strict=True)
    )


def _taps(size, out, k, stride, before):
    """Indices of the kernel taps that touch the input, along one axis."""
    last = stride * (out - 1)
    return [i for i in range(k) if i - before < size and i - before + last >= 0]


def pad(x, padding):
    """Pads height and width with zeros."""
    # lax.pad accepts negative padding, which a transposed convolution can have.
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))


def geometry(x, rows, columns, stride, padding):
    """Output height and width, and the taps that touch the input along each axis."""
    out, taps = [], []
    for size, k, (before, after) in zip(x.shape[1:3], (rows, columns), padding, strict=True):
        out.append((size + before + after - k) // stride + 1)
        taps.append(_taps(size, out[-1], k, stride, before))
    return out, taps


def _window(x, row, column, stride, size):
    """A strided window of `size` (height, width) that starts at (row, column)."""
    height, width = ((n - 1) * stride + 1 for n in size)
    return x[:, row : row + height : stride, column : column + width : stride]


def _sum_over_taps(windows, taps):
    """The float32 sum of windows times taps; a tap has a factor per channel."""
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
    """The taps that connect input pixels `phase + stride * m` to an output pixel, along one axis.

    Each comes with the output pixel's offset from m.
    """
    first = (phase + before) % stride
    return [(i, (phase + before - i) // stride) for i in range(first, k, stride)]


def input_grad(grad, kernel, *, size, stride, padding):
    """Gradient of an input of `size` (height, width), given the output gradient."""
    pixels = [-(-n // stride) for n in size]  # per phase
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
        pairs = list(itertools.product(rows, columns))
        windows = (
            _window(padded, margins[0][0] + row, margins[1][0] + column, 1, pixels)
            for (_, row), (_, column) in pairs
        )
        total = _sum_over_taps(windows, (kernel[i, j] for (i, _), (j, _) in pairs))
        shape = (grad.shape[0], *pixels, grad.shape[-1])
        return jnp.broadcast_to(total, shape).astype(grad.dtype)

    if stride == 1:
        return one_phase(axes[0][0], axes[1][0])
    phases = [jnp.stack([one_phase(rows, columns) for columns in axes[1]], 3) for rows in axes[0]]
    shape = (grad.shape[0], stride * pixels[0], stride * pixels[1], grad.shape[-1])
    return jnp.stack(phases, 2).reshape(shape)[:, : size[0], : size[1]]


def _kernel_grad(x, grad, rows, columns, stride, padding):
    """The float32 gradient of a kernel of (rows, columns), one tile of the map after another."""
    size, taps = geometry(x, rows, columns, stride, padding)
    across = size[1] if size[1] <= _WIDEST else _UNROLLED
    tile = (min(size[0], max(1, _UNROLLED // across)), across)
    tiles = tuple(-(-n // t) for n, t in zip(size, tile, strict=True))
    # The last tiles are filled with zeros. Taps that never touch the input are left out.
    padded = [n * t for n, t in zip(tiles, tile, strict=True)]
    grad = pad(grad, [(0, n - out) for n, out in zip(padded, size, strict=True)])
    margins = [
        (before - tap[0], (n - 1) * stride + tap[-1] + 1 - before - length)
        for n, length, tap, (before, _) in zip(padded, x.shape[1:3], taps, padding, strict=True)
    ]
    halves = 2 - x.shape[0] % 2  # of the batch, so that two threads have work
    x, grad = (a.reshape(halves, -1, *a.shape[1:]) for a in (pad(x, margins), grad))
    window = [len(tap) for tap in taps]
    extent = [(t - 1) * stride + w for t, w in zip(tile, window, strict=True)]

    def cut(a, example, start, size):
        size = (halves, 1, *size, a.shape[-1])
        return lax.dynamic_slice(a, (0, example, *start, 0), size)[:, 0].astype(jnp.float32)

    def add_tile(index, total):
        example, number = index // (tiles[0] * tiles[1]), index % (tiles[0] * tiles[1])
        position = (number // tiles[1], number % tiles[1])
        start = [p * t for p, t in zip(position, tile, strict=True)]
        pixels = cut(x, example, [stride * p for p in start], extent)
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
    """For (input pixel, output pixel): the tap that connects them; rows * columns if none does."""
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
    # A tap's gradient is the sum over the pixel pairs it connects, computed with a 0/1 matrix.
    connections = np.eye(rows * columns + 1, dtype=np.float32)[taps.ravel()][:, :-1]
    sums = jnp.einsum("nk,nc->kc", jnp.asarray(connections), joint.reshape(-1, channels))
    return sums.reshape(rows, columns, channels)
