"""Colour: lookup tables of a byte's new value, and 3x3 matrices over a pixel's colours.

Whatever maps each value of a channel to another is an entry of one table, Float[256, 3], however
many such steps there are; what mixes the channels is one matrix, Float[3, 3], from the old colours
to the new. Tables hold whole numbers: like Pillow's operations, each step rounds. What a step must
know of the image (its mean, its range) comes from the image's histogram, looked up in the table
so far.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

Table = Float[Array, "256 3"]
Matrix = Float[Array, "3 3"]

# Of the perceived brightness (ITU-R BT.601), as Pillow's conversion to grey has it.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The NTSC colour space YIQ: brightness, and two axes of colour, in which hue is an angle.
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
    """Each value itself."""
    return jnp.broadcast_to(jnp.arange(256, dtype=jnp.float32)[:, None], (256, 3))


def histogram(image: Num[Array, "height width 3"]) -> Table:
    """How many pixels have each value, in each channel; the image holds whole numbers."""
    values = image.reshape(-1, 3).astype(jnp.int32)
    return jnp.zeros((256, 3)).at[values, jnp.arange(3)[None]].add(1.0)


def counts(table: Table, original: Table) -> Table:
    """The histogram of the image that the table makes of one with this histogram."""
    return jnp.zeros((256, 3)).at[table.astype(jnp.int32), jnp.arange(3)[None]].add(original)


def look_up(image: Num[Array, "height width 3"], table: Table) -> Float[Array, "height width 3"]:
    """The image with each value's entry in its place."""
    return table[image.astype(jnp.int32), jnp.arange(3)[None, None]]


def _whole(values):
    return jnp.clip(jnp.round(values), 0, 255)


def brightness(table: Table, factor: Float[Array, "*"]) -> Table:
    """Scales the values, by one factor or one a channel; Pillow's `ImageEnhance.Brightness`."""
    return _whole(table * factor)


def contrast(table: Table, counted: Table, factor: Float[Array, ""]) -> Table:
    """Scales the distance from the mean of the grey image; Pillow's `ImageEnhance.Contrast`.

    `counted` is the image's histogram.
    """
    values = jnp.arange(256, dtype=jnp.float32)[:, None]
    means = (values * counted).sum(0) / jnp.maximum(counted.sum(0), 1)
    grey = jnp.floor((means * _LUMA).sum() + 0.5)
    return _whole(grey + (table - grey) * factor)


def gamma(table: Table, exponent: Float[Array, ""]) -> Table:
    """255 (value / 255) ** exponent."""
    return _whole(255 * (table / 255) ** exponent)


def shift(table: Table, levels: Float[Array, " 3"]) -> Table:
    """Adds so many grey levels to each channel."""
    return _whole(table + levels[None])


def solarize(table: Table, threshold: Float[Array, ""]) -> Table:
    """Inverts the values from the threshold on; Pillow's `ImageOps.solarize`."""
    return jnp.where(table < threshold, table, 255 - table)


def posterize(table: Table, bits: Num[Array, ""]) -> Table:
    """Keeps the highest bits of each value; Pillow's `ImageOps.posterize`."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(table / step) * step


def autocontrast(table: Table, counted: Table) -> Table:
    """Stretches each channel to all of 0..255; Pillow's `ImageOps.autocontrast`.

    A channel of one value stays as it is.
    """
    values = jnp.arange(256, dtype=jnp.float32)[:, None]
    low = jnp.where(counted > 0, values, 255).min(0)
    high = jnp.where(counted > 0, values, 0).max(0)
    stretched = jnp.floor((table - low[None]) * (255 / jnp.maximum(high - low, 1))[None])
    return jnp.where((high > low)[None], jnp.clip(stretched, 0, 255), table)


def equalize(table: Table, counted: Table) -> Table:
    """Spreads each channel's values so that all are about as frequent.

    It is Pillow's `ImageOps.equalize`, which leaves a channel alone that has too few pixels to
    spread. `counted` is the image's histogram.
    """
    number = counted.astype(jnp.int32)
    last = 255 - jnp.argmax(number[::-1] > 0, axis=0)
    most = number.sum(0) - number[last, jnp.arange(3)]
    step = most // 255
    below = jnp.cumsum(number, 0) - number
    spread = ((step // 2)[None] + below) // jnp.maximum(step, 1)[None]
    found = look_up(table[None], jnp.clip(spread, 0, 255).astype(jnp.float32))[0]
    return jnp.where((step > 0)[None], found, table)


def saturation(factor: Float[Array, ""]) -> Matrix:
    """Scales the distance from grey, which is 0; Pillow's `ImageEnhance.Color`."""
    return factor * jnp.eye(3) + (1 - factor) * jnp.broadcast_to(_LUMA, (3, 3))


def hue(turns: Float[Array, ""]) -> Matrix:
    """Turns the colours about the axis of grey, at constant brightness, in YIQ space."""
    angle = 2 * jnp.pi * turns
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    turned = jnp.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return _product(_RGB, _product(turned, _YIQ))


def permutation(order: Int[Array, " 3"]) -> Matrix:
    """New channel i is the old one `order[i]`."""
    return jnp.eye(3)[order]


def then(first: Matrix, second: Matrix) -> Matrix:
    """The matrix of both, one after the other."""
    return _product(second, first)


def mix_channels(
    image: Float[Array, "height width 3"], matrix: Matrix
) -> Float[Array, "height width 3"]:
    """The image with its colours mixed, kept in 0..255."""
    new = sum(image[..., i : i + 1] * matrix[:, i][None, None] for i in range(3))
    return jnp.clip(new, 0, 255)


def _product(left, right):
    """A matrix product without an accelerator's rounding to bfloat16."""
    return (left[:, :, None] * right[None, :, :]).sum(1)
