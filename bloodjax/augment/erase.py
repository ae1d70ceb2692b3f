"""Erasing parts of an image: boxes and grids.

As in `filters`, functions take and return one RGB image, float32 in 0..255, and their strengths may
be traced. A box is (top, left, height, width) in pixels: it contains the rows from `top` to
`top + height - 1`, and may extend beyond the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from bloodjax.augment.filters import Image, Scalar

Box = Num[Array, " 4"]
Fill = Float[Array, " 3"] | Image

# Number of attempts of `random_box`, as in timm and torchvision.
_ATTEMPTS = 10


def erase(x: Image, box: Box, fill: Fill) -> Image:
    """Fills a box (Zhong et al., "Random erasing data augmentation", 2020, arXiv:1708.04896).

    Args:
      x: The image.
      box: The box to fill; a height or width of 0 changes nothing.
      fill: A colour, or an image to copy the pixels from: another cell, or noise from
        `filters.random_levels(key, size, bits=8)`.
    """
    top, left, height, width = box.astype(jnp.float32)
    hidden = _between(x.shape[0], top, height)[:, None] & _between(x.shape[1], left, width)[None]
    return _fill(x, hidden, fill)


def random_box(
    key: Key[Array, ""],
    size: tuple[int, int],
    area: tuple[Scalar, Scalar] = (0.02, 1 / 3),
    aspect: tuple[Scalar, Scalar] = (0.3, 1 / 0.3),
) -> Box:
    """Samples a box within the image, as random erasing in timm and torchvision does.

    Args:
      key: Random key.
      size: Height and width of the image.
      area: Smallest and largest share of the image's area; the distribution is uniform.
      aspect: Smallest and largest height / width; its logarithm is distributed uniformly.

    Returns:
      The first of ten samples that is smaller than the image in both directions, or an empty box if
      none is.
    """
    height, width = size
    for_area, for_aspect, for_top, for_left = jax.random.split(key, 4)
    pixels = height * width * _uniform(for_area, (_ATTEMPTS,), *area)
    ratio = jnp.exp(_uniform(for_aspect, (_ATTEMPTS,), *(jnp.log(jnp.asarray(a)) for a in aspect)))
    heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.arange(_ATTEMPTS) == jnp.argmax(fits)
    box_height, box_width = (jnp.sum(jnp.where(first & fits, s, 0)) for s in (heights, widths))
    top = jax.random.randint(for_top, (), 0, height - box_height + 1)
    left = jax.random.randint(for_left, (), 0, width - box_width + 1)
    return jnp.stack([top, left, box_height, box_width])


def cutout_box(key: Key[Array, ""], size: tuple[int, int], side: Scalar) -> Box:
    """Samples a square centred on any pixel; part of it may be outside the image.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017
    (arXiv:1708.04552).

    Args:
      key: Random key.
      size: Height and width of the image.
      side: Side of the square in pixels.
    """
    centre = jax.random.randint(key, (2,), 0, jnp.array(size)).astype(jnp.float32)
    return jnp.concatenate([centre - side / 2, jnp.full(2, side, jnp.float32)])


def grid_mask(
    x: Image,
    period: Scalar,
    ratio: Scalar,
    offset: Float[Array, " 2"],
    angle: Scalar = 0.0,
    fill: Fill | None = None,
) -> Image:
    """Erases squares of a regular grid (Chen et al., "GridMask", 2020, arXiv:2001.04086).

    Args:
      x: The image.
      period: Period of the grid in pixels.
      ratio: Side of an erased square as a share of the period; 0 changes nothing.
      offset: Pixels by which the grid is moved down and right.
      angle: Rotation of the grid about the image's centre, in degrees, anticlockwise.
      fill: A colour, or an image to copy the pixels from; black by default.
    """
    height, width, _ = x.shape
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    right = jnp.arange(width, dtype=jnp.float32)[None] - (width - 1) / 2
    sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    row = down * cosine + right * sine + (height - 1) / 2 - offset[0]
    column = right * cosine - down * sine + (width - 1) / 2 - offset[1]
    side = period * ratio
    hidden = (_remainder(row, period) < side) & (_remainder(column, period) < side)
    return _fill(x, hidden, jnp.zeros(3) if fill is None else fill)


def _uniform(key, shape, low, high):
    return low + (high - low) * jax.random.uniform(key, shape, jnp.float32)


def _remainder(x, period):
    # `%` takes ten times as long on a CPU. Rounding errors must not give a negative remainder.
    return jnp.maximum(x - period * jnp.floor(x / period), 0.0)


def _between(size: int, start, length) -> Bool[Array, " size"]:
    """Whether each index along an axis is in [start, start + length)."""
    index = jnp.arange(size, dtype=jnp.float32)
    return (index >= start) & (index < start + length)


def _fill(x, hidden: Bool[Array, "height width"], fill: Fill):
    return jnp.clip(jnp.where(hidden[..., None], jnp.broadcast_to(fill, x.shape), x), 0.0, 255.0)
