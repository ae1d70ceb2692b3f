"""What hides parts of an image: boxes and grids.

One RGB image, float32 in 0..255, in and out, with traced strengths, as in `filters`. A box is (top,
left, height, width) in pixels; it holds the pixels from `top` on and before `top + height`, and may
reach beyond the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from bloodjax.augment.filters import Image, Scalar

Box = Num[Array, " 4"]
Fill = Float[Array, " 3"] | Image

# How often `random_box` draws before it gives up, as timm and torchvision do.
_DRAWS = 10


def erase(x: Image, box: Box, fill: Fill) -> Image:
    """Fills a box (Zhong et al., "Random erasing data augmentation", 2020, arXiv:1708.04896).

    Args:
      x: image.
      box: what to fill; one of height or width 0 changes nothing.
      fill: a colour, or an image to take the pixels from: another cell, or noise, which
        `filters.random_levels(key, size, bits=8)` is.
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
    """A box anywhere within the image, drawn as timm's and torchvision's random erasing does.

    Args:
      key: what it is drawn from.
      size: the image's height and width.
      area: least and greatest share of the image's area, drawn uniformly.
      aspect: least and greatest height / width, drawn uniformly in its logarithm.

    Returns:
      The first of ten draws that is less high and less wide than the image; else an empty box.
    """
    height, width = size
    for_area, for_aspect, for_top, for_left = jax.random.split(key, 4)
    pixels = height * width * _uniform(for_area, (_DRAWS,), *area)
    ratio = jnp.exp(_uniform(for_aspect, (_DRAWS,), *(jnp.log(jnp.asarray(a)) for a in aspect)))
    heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.arange(_DRAWS) == jnp.argmax(fits)
    box_height, box_width = (jnp.sum(jnp.where(first & fits, s, 0)) for s in (heights, widths))
    top = jax.random.randint(for_top, (), 0, height - box_height + 1)
    left = jax.random.randint(for_left, (), 0, width - box_width + 1)
    return jnp.stack([top, left, box_height, box_width])


def cutout_box(key: Key[Array, ""], size: tuple[int, int], side: Scalar) -> Box:
    """A square about any pixel, so that a part of it may lie outside the image.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017
    (arXiv:1708.04552).

    Args:
      key: what it is drawn from.
      size: the image's height and width.
      side: of the square, in pixels.
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
    """Hides squares in a regular grid (Chen et al., "GridMask", 2020, arXiv:2001.04086).

    Args:
      x: image.
      period: of the grid, in pixels.
      ratio: a hidden square's side as a share of the period; 0 hides nothing.
      offset: by how many pixels the grid is moved down and right.
      angle: by which it is turned about the image's centre, in degrees, anticlockwise.
      fill: a colour, or an image to take the pixels from; black if not given.
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
    # `%` takes ten times as long on a CPU. Rounding must not leave less than nothing.
    return jnp.maximum(x - period * jnp.floor(x / period), 0.0)


def _between(size: int, start, length) -> Bool[Array, " size"]:
    """Along one axis, which pixels lie in [start, start + length)."""
    index = jnp.arange(size, dtype=jnp.float32)
    return (index >= start) & (index < start + length)


def _fill(x, hidden: Bool[Array, "height width"], fill: Fill):
    return jnp.clip(jnp.where(hidden[..., None], jnp.broadcast_to(fill, x.shape), x), 0.0, 255.0)
