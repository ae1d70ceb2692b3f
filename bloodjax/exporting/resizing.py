"""Pillow's bicubic resizing in JAX, to the same integers, for images of any size.

`data.images` resizes on the host with Pillow. An exported program has no Pillow, and reads images
whose height and width are known when it runs. This module repeats Pillow's arithmetic
(`src/libImaging/Resample.c`): the coefficients of a row or column are computed in float64,
normalised to the sum 1 and rounded to integers of 22 fractional bits; products are summed in
integers, and the result is clipped to 0..255. Columns come first, and from Pillow 13 on the rows of
an image that loses more than twice as many of them.

JAX computes in float64 only inside `jax.enable_x64`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from bloodjax.data import images as images_lib
from bloodjax.data.options import FIT_VALUES, frame_side
from bloodjax.errors import UserError

_BITS = 22
_SUPPORT = 2.0  # Reach of the bicubic kernel in pixels of the smaller image.
_A = -0.5  # Parameter of the bicubic kernel (Keys, 1981).


def to_square(
    images: UInt8[Array, "batch height width 3"], size: int, fit: str
) -> UInt8[Array, "batch {size} {size} 3"]:
    """Makes each image a square, as `data.images.resize` does; the sizes may be symbolic.

    Args:
      images: RGB images of one height and width.
      size: Height and width of the result in pixels.
      fit: See `config.data.fit`.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    with jax.enable_x64(True):
        height, width = (jnp.asarray(side, jnp.int64) for side in (height, width))
        if fit == "squash":
            columns, rows = _axis(size, 0, width, width), _axis(size, 0, height, height)
            return _resized(images, columns, rows, (size, size))
        if fit == "pad":
            return _padded(images, size, height, width)
        if frame := frame_side(fit):
            axis = _axis(size, 0, frame, frame)
            framed = _resized(_framed(images, frame, height, width), axis, axis, (size, size))
            # A square of the network's size is taken as it is, as everywhere.
            is_square = (height == size) & (width == size)
            return jnp.where(is_square, _framed(images, size, height, width), framed)
        if fit != "crop":
            raise UserError(f"fit is {fit!r}, expected {FIT_VALUES}")
        side = jnp.minimum(height, width)
        starts = ((total - side).astype(jnp.float64) / 2.0 for total in (width, height))
        columns, rows = (
            _axis(size, start, side, total)
            for start, total in zip(starts, (width, height), strict=True)
        )
        return _resized(images, columns, rows, (size, size))


class _Axis(NamedTuple):
    """How one axis is resized.

    Attributes:
      centre: Position of each pixel of the result in the image, in pixels; float64 [size].
      scale: Pixels of the image per pixel of the result; float64.
      first: First pixel of the image that each pixel of the result depends on; int64 [size].
      count: How many it depends on; int64 [size].
    """

    centre: Float[Array, " size"]
    scale: Float[Array, ""]
    first: Int[Array, " size"]
    count: Int[Array, " size"]

    @property
    def stretch(self) -> Float[Array, ""]:
        """Factor by which the kernel is wider than for an enlargement."""
        return jnp.maximum(self.scale, 1.0)


def _axis(size: int, start, length, total, results=None, offset=None) -> _Axis:
    """The axis that maps `length` pixels from `start`, of `total`, to pixels of the result.

    Args:
      size: Pixels of the result.
      start: First pixel; may be fractional.
      length: Pixels that the result shows.
      total: Pixels of the image.
      results: Pixels of the result that `length` is mapped to; by default all.
      offset: The first of these.
    """
    wide = jnp.float64
    start, length = (jnp.asarray(value).astype(wide) for value in (start, length))
    index = jnp.arange(size, dtype=jnp.int64)
    index = index if offset is None else index - offset
    scale = length / (jnp.asarray(size if results is None else results).astype(wide))
    centre = start + (index.astype(wide) + 0.5) * scale
    reach = _SUPPORT * jnp.maximum(scale, 1.0)
    # A cast truncates towards 0, as C does.
    first = jnp.maximum((centre - reach + 0.5).astype(jnp.int64), 0)
    last = jnp.minimum((centre + reach + 0.5).astype(jnp.int64), total)
    return _Axis(centre, scale, first, last - first)


def _bicubic(x):
    x = jnp.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _A
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _tap(axis: _Axis, tap):
    """Coefficient of each result's pixel `tap`, before normalisation."""
    distance = (tap + axis.first).astype(jnp.float64) - axis.centre + 0.5
    return jnp.where(tap < axis.count, _bicubic(distance * (1.0 / axis.stretch)), 0.0)


def _along(images, axis: _Axis, dimension: int):
    """Resizes one dimension of uint8 images."""
    taps = jnp.maximum(axis.count.max(), 0)
    zeros = jnp.zeros(axis.centre.shape, jnp.float64)
    total = lax.fori_loop(0, taps, lambda tap, total: total + _tap(axis, tap), zeros)
    last = jnp.asarray(images.shape[dimension], jnp.int64) - 1
    shape = [1] * images.ndim
    shape[dimension] = -1

    def add(tap, sums):
        weight = _tap(axis, tap) / total * float(1 << _BITS)
        weight = jnp.trunc(weight + jnp.where(weight < 0, -0.5, 0.5)).astype(jnp.int32)
        pixels = jnp.take(images, jnp.clip(axis.first + tap, 0, last), axis=dimension)
        return sums + pixels.astype(jnp.int32) * weight.reshape(shape)

    size = list(images.shape)
    size[dimension] = len(axis.centre)
    sums = lax.fori_loop(0, taps, add, jnp.full(size, 1 << (_BITS - 1), jnp.int32))
    return jnp.clip(sums >> _BITS, 0, 255).astype(jnp.uint8)


def _resized(images, columns: _Axis, rows: _Axis, size: tuple):
    """Resizes both axes; `size` is the height and width of the result."""
    # The sizes are traced, and so are the differences.
    taller, wider = (
        jnp.asarray(side, jnp.int64) - jnp.asarray(result, jnp.int64)
        for side, result in zip(images.shape[1:3], size, strict=True)
    )
    rows_first = (taller > 0) & (taller > 2 * wider) & images_lib.ROWS_BEFORE_COLUMNS
    return lax.cond(
        rows_first,
        lambda images: _along(_along(images, rows, 1), columns, 2),
        lambda images: _along(_along(images, columns, 2), rows, 1),
        images,
    )


def _padded(images, size: int, height, width):
    longest = jnp.maximum(height, width)
    scale = float(size) / longest.astype(jnp.float64)
    inner = [
        jnp.maximum(jnp.round(side.astype(jnp.float64) * scale), 1.0).astype(jnp.int64)
        for side in (height, width)
    ]
    offsets = [(size - side) // 2 for side in inner]
    rows, columns = (
        _axis(size, 0, total, total, side, offset)
        for total, side, offset in zip((height, width), inner, offsets, strict=True)
    )
    resized = _resized(images, columns, rows, tuple(inner))
    index = jnp.arange(size, dtype=jnp.int64)
    inside = [
        (index >= offset) & (index < offset + side)
        for side, offset in zip(inner, offsets, strict=True)
    ]
    mask = inside[0][:, None] & inside[1][None, :]
    return jnp.where(mask[None, :, :, None], resized, _border(images)[:, None, None])


def _framed(images, frame: int, height, width):
    """The central squares of `frame` pixels, as Pillow pastes an image into one."""
    index = jnp.arange(frame, dtype=jnp.int64)
    rows, columns = (index - (frame - side) // 2 for side in (height, width))
    inside = [(at >= 0) & (at < side) for at, side in ((rows, height), (columns, width))]
    found = jnp.take(images, jnp.clip(rows, 0, height - 1), axis=1)
    found = jnp.take(found, jnp.clip(columns, 0, width - 1), axis=2)
    mask = inside[0][:, None] & inside[1][None, :]
    return jnp.where(mask[None, :, :, None], found, _border(images)[:, None, None])


def _border(images):
    """The median of the border's pixels in each channel, without its fraction."""
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    values = jnp.sort(jnp.concatenate(edges, axis=1), axis=1)
    half = jnp.asarray(values.shape[1], jnp.int64) // 2  # The number of pixels is even.
    middle = jnp.take(values, jnp.stack([half - 1, half]), axis=1).astype(jnp.int32).sum(1)
    return (middle.astype(jnp.int32) // 2).astype(jnp.uint8)
