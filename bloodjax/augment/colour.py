"""Colour operations as lookup tables per channel, and as 3x3 matrices that mix channels.

Any number of operations on single channels is composed into one table, Float[256, 3], from a value
to its new value. Operations that mix channels are composed into one matrix, Float[3, 3], from old
to new colours. Tables contain integers: each operation rounds, as Pillow's do. Statistics of the
image (mean, range) come from its histogram, mapped by the table so far.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

Table = Float[Array, "256 3"]
Matrix = Float[Array, "3 3"]

# Luma coefficients (ITU-R BT.601), as in Pillow's conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# RGB to NTSC's YIQ: brightness and two axes of colour, in which hue is an angle.
_YIQ = np.array(
    [
        [0.299, 0.587, 0.114],
        [0.59590059, -0.27455667, -0.32134392],
        [0.21153661, -0.52273617, 0.31119955],
    ],
    np.float32,
)
_RGB = np.linalg.inv(_YIQ)


def identity_table() -> Table:
    """The table that changes nothing."""
    return jnp.broadcast_to(jnp.arange(256, dtype=jnp.float32)[:, None], (256, 3))


def histogram(image: Num[Array, "height width 3"]) -> Table:
    """Number of pixels by value and channel; the image has integer values in 0..255."""
    values = image.reshape(-1, 3).astype(jnp.int32)
    return jnp.zeros((256, 3)).at[values, jnp.arange(3)[None]].add(1.0)


def counts(table: Table, original: Table) -> Table:
    """The histogram after `table` is applied to an image with the histogram `original`."""
    # A TPU adds one entry after another.
    return lax.platform_dependent(
        table, original, tpu=_counts_by_products, default=_counts_by_adding
    )


def look_up(image: Num[Array, "height width 3"], table: Table) -> Float[Array, "height width 3"]:
    """Applies the table to an image with integer values in 0..255."""
    return table[image.astype(jnp.int32), jnp.arange(3)[None, None]]


def _counts_by_adding(table: Table, original: Table) -> Table:
    return jnp.zeros((256, 3)).at[table.astype(jnp.int32), jnp.arange(3)[None]].add(original)


def _counts_by_products(table: Table, original: Table) -> Table:
    high, low = _one_hot_digits(table)
    total = jnp.zeros((16, 16, 3))
    # Three digits to base 256 of the counts, because bfloat16 is exact up to 256.
    for unit in (1.0, 2.0**8, 2.0**16):
        digit = jnp.mod(jnp.floor(original / unit), 256.0)
        counted = jnp.where(high, digit[..., None], 0.0).astype(jnp.bfloat16)
        counted = jnp.einsum(
            "vch,vcl->hlc",
            counted,
            low.astype(jnp.bfloat16),
            preferred_element_type=jnp.float32,
        )
        total = total + unit * counted
    return total.reshape(256, 3)


def _compose_by_look_up(first: Table, second: Table) -> Table:
    return look_up(first[None], second)[0]


def _compose_by_products(first: Table, second: Table) -> Table:
    high, low = _one_hot_digits(first)
    rows = jnp.einsum(
        "vch,hlc->vcl",
        high.astype(jnp.bfloat16),
        second.reshape(16, 16, 3).astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )
    return jnp.where(low, rows, 0.0).sum(2)


def _one_hot_digits(table: Table) -> tuple[Bool[Array, "256 3 16"], Bool[Array, "256 3 16"]]:
    """The two digits to base 16 of each value in the table."""
    values = table.astype(jnp.int32)[..., None]
    digits = jnp.arange(16, dtype=jnp.int32)[None, None]
    return (values >> 4) == digits, (values & 15) == digits


def _round_to_byte(values):
    return jnp.clip(jnp.round(values), 0, 255)


def brightness(table: Table, factor: Float[Array, "*"]) -> Table:
    """Multiplies the values by a factor, or one per channel; Pillow's `ImageEnhance.Brightness`."""
    return _round_to_byte(table * factor)


def contrast(table: Table, counted: Table, factor: Float[Array, ""]) -> Table:
    """Scales the distance from the mean of the grey image; Pillow's `ImageEnhance.Contrast`.

    Args:
      table: The table so far.
      counted: Histogram of the image after `table`.
      factor: 1 changes nothing.
    """
    values = jnp.arange(256, dtype=jnp.float32)[:, None]
    means = (values * counted).sum(0) / jnp.maximum(counted.sum(0), 1)
    grey = jnp.floor((means * _LUMA).sum() + 0.5)
    return _round_to_byte(grey + (table - grey) * factor)


def gamma(table: Table, exponent: Float[Array, ""]) -> Table:
    """Gamma correction: 255 * (value / 255) ** exponent."""
    return _round_to_byte(255 * (table / 255) ** exponent)


def shift(table: Table, levels: Float[Array, " 3"]) -> Table:
    """Adds a number of grey levels to each channel."""
    return _round_to_byte(table + levels[None])


def solarize(table: Table, threshold: Float[Array, ""]) -> Table:
    """Inverts values at or above the threshold; Pillow's `ImageOps.solarize`."""
    return jnp.where(table < threshold, table, 255 - table)


def posterize(table: Table, bits: Num[Array, ""]) -> Table:
    """Keeps the `bits` highest bits of each value; Pillow's `ImageOps.posterize`."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(table / step) * step


def autocontrast(table: Table, counted: Table) -> Table:
    """Stretches each channel to 0..255; Pillow's `ImageOps.autocontrast`.

    A channel with a single value does not change.

    Args:
      table: The table so far.
      counted: Histogram of the image after `table`.
    """
    values = jnp.arange(256, dtype=jnp.float32)[:, None]
    low = jnp.where(counted > 0, values, 255).min(0)
    high = jnp.where(counted > 0, values, 0).max(0)
    # In float32, a product that is an integer may be just below it. Others are farther from one.
    stretched = (table - low[None]) * (255 / jnp.maximum(high - low, 1))[None]
    stretched = jnp.floor(stretched + 1e-3)
    return jnp.where((high > low)[None], jnp.clip(stretched, 0, 255), table)


def equalize(table: Table, counted: Table) -> Table:
    """Equalises each channel's histogram; Pillow's `ImageOps.equalize`.

    A channel with fewer than 255 pixels below its largest value does not change.

    Args:
      table: The table so far.
      counted: Histogram of the image after `table`.
    """
    number = counted.astype(jnp.int32)
    last = 255 - jnp.argmax(number[::-1] > 0, axis=0)
    below_last = number.sum(0) - number[last, jnp.arange(3)]
    step = below_last // 255
    below = jnp.cumsum(number, 0) - number
    spread = ((step // 2)[None] + below) // jnp.maximum(step, 1)[None]
    spread = jnp.clip(spread, 0, 255).astype(jnp.float32)
    # A TPU gathers one entry after another.
    equalized = lax.platform_dependent(
        table, spread, tpu=_compose_by_products, default=_compose_by_look_up
    )
    return jnp.where((step > 0)[None], equalized, table)


def saturation(factor: Float[Array, ""]) -> Matrix:
    """Scales the distance from grey; a factor of 0 gives grey. Pillow's `ImageEnhance.Color`."""
    return factor * jnp.eye(3) + (1 - factor) * jnp.broadcast_to(_LUMA, (3, 3))


def hue(turns: Float[Array, ""]) -> Matrix:
    """Rotates the colours about the grey axis of YIQ space, at constant brightness."""
    angle = 2 * jnp.pi * turns
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    rotation = jnp.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return _product(_RGB, _product(rotation, _YIQ))


def permutation(order: Int[Array, " 3"]) -> Matrix:
    """The matrix for which new channel i is the old channel `order[i]`."""
    return jnp.eye(3)[order]


def then(first: Matrix, second: Matrix) -> Matrix:
    """The matrix that applies `first` and then `second`."""
    return _product(second, first)


def mix_channels(
    image: Float[Array, "height width 3"], matrix: Matrix
) -> Float[Array, "height width 3"]:
    """Applies the matrix to each pixel and clips to 0..255."""
    new = sum(image[..., i : i + 1] * matrix[:, i][None, None] for i in range(3))
    return jnp.clip(new, 0, 255)


def _product(left, right):
    """A matrix product whose operands an accelerator does not round to bfloat16."""
    return (left[:, :, None] * right[None, :, :]).sum(1)
