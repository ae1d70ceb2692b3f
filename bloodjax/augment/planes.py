"""The operations on batches of planes, for TPUs, which fetch single pixels one after another.

Images are float32 [batch, 3, height, width], in 0..255, so that a row of pixels lies along the
lanes of the vector unit. Nothing here gathers pixels: they are fetched by products with one-hot
matrices, and tables by binary selection. `affine`, `colour` and `filters` define what is computed;
tables, histograms and resampled pixels are equal to theirs, and filters up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

from bloodjax.augment import affine, filters

Planes = Float[Array, "batch 3 height width"]

# Pixels that are fetched at once. With 18, the 512 groups of an image of 96 x 96 pixels fill four
# tiles of the matrix unit, and the values of a group fill one.
_GROUP = 18
# Pixels of the images that `resample` is best given at once: what it fetches for them fits the fast
# memory of a TPU.
_RESAMPLED_PIXELS = 8 * 96 * 96


def from_images(images: Num[Array, "batch height width 3"]) -> Planes:
    """Moves the channels before the rows and converts to float32."""
    return jnp.moveaxis(images, -1, 1).astype(jnp.float32)


def to_images(x: Planes) -> Float[Array, "batch height width 3"]:
    """The inverse of `from_images`."""
    return jnp.moveaxis(x, 1, -1)


def look_up(x: Planes, table: Float[Array, "batch 256 3"]) -> Planes:
    """Equal to `colour.look_up` of each image.

    A 32-bit word has the values of four neighbouring entries. The upper six bits of a pixel select
    among 64 words, one bit after another.
    """
    values = table.astype(jnp.int32).reshape(-1, 64, 4, 3)
    words = values[:, :, 0]
    for i in (1, 2, 3):
        words = words | (values[:, :, i] << 8 * i)
    # Broadcast along the lanes once, and not for each row.
    shape = (64, len(x), 3, 1, x.shape[-1])
    words = jnp.broadcast_to(words.swapaxes(0, 1)[..., None, None], shape)
    words = lax.optimization_barrier(words)
    pixels = x.astype(jnp.int32)
    level = list(words)
    for bit in range(2, 8):
        is_set = (pixels >> bit) & 1 == 1
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [jnp.where(is_set, high, low) for low, high in pairs]
    return ((level[0] >> ((pixels & 3) * 8)) & 255).astype(jnp.float32)


def histogram(x: Planes) -> Float[Array, "batch 256 3"]:
    """Equal to `colour.histogram` of each image.

    A value has two digits to base 16. The product of their one-hot matrices counts the pairs.
    """
    pixels = x.astype(jnp.int32).reshape(len(x), 3, 1, -1)
    digits = jnp.arange(16, dtype=jnp.int32)[None, None, :, None]
    high = ((pixels >> 4) == digits).astype(jnp.bfloat16)
    low = ((pixels & 15) == digits).astype(jnp.bfloat16)
    counted = jnp.einsum("bchp,bclp->bhlc", high, low, preferred_element_type=jnp.float32)
    return counted.reshape(len(x), 256, 3)


def mix_channels(x: Planes, matrix: Float[Array, "batch 3 3"]) -> Planes:
    """Equal to `colour.mix_channels` of each image."""
    new = sum(x[:, None, i] * matrix[:, :, i, None, None] for i in range(3))
    return jnp.clip(new, 0, 255)


def resample(x: Planes, maps: Float[Array, "batch 2 3"], fill: str) -> Planes:
    """Equal to `affine.resample` of each image, which has integer values in 0..255.

    The pixels of an image, row after row, are in groups of neighbours. A product with a one-hot
    matrix fetches, for each new pixel, the group of the pixel at its top left, with the pixel after
    the group, and the pixels below. The four pixels are then selected within the group. Operands
    are integers up to 255 and products have one term, so bfloat16 is exact.
    """
    batch, channels, height, width = x.shape
    size = height * width
    centre = ((height - 1) / 2, (width - 1) / 2)
    across = [
        (n - c).astype(np.float32)[None]
        for n, c in zip(np.divmod(np.arange(size), width), centre, strict=True)
    ]
    sampled = []
    for factors, middle, length in zip(maps.swapaxes(0, 1), centre, (height, width), strict=True):
        row, column, shift = (factors[:, i, None] for i in range(3))
        position = row * across[0] + column * across[1] + shift + middle
        sampled.append(affine.move_inside(position, length, fill))
    top, left = (jnp.floor(position) for position in sampled)
    parts = [position - low for position, low in zip(sampled, (top, left), strict=True)]
    first = (top * width + left).astype(jnp.int32)
    group = lax.div(first, jnp.full_like(first, _GROUP))
    place = first - _GROUP * group
    groups = -(-size // _GROUP)
    rows = x.astype(jnp.bfloat16).reshape(batch, channels, size)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, (groups + 1) * _GROUP + width - size)))

    def windows(start):
        """Each group and the pixel after it, from pixel `start` on."""
        ends = ((start, _GROUP), (start + _GROUP, 1))
        parts = [
            rows[:, :, first : first + groups * _GROUP].reshape(batch, channels, groups, _GROUP)[
                ..., :pixels
            ]
            for first, pixels in ends
        ]
        return jnp.concatenate(parts, -1)

    near = jnp.stack([windows(0), windows(width)], 2).transpose(0, 2, 1, 4, 3)
    near = near.reshape(batch, -1, groups)
    one_hot = group[:, None] == jnp.arange(groups, dtype=jnp.int32)[None, :, None]
    fetched = jnp.einsum(
        "bng,bgp->bnp", near, one_hot.astype(near.dtype), preferred_element_type=jnp.float32
    ).reshape(batch, 2, channels, _GROUP + 1, size)

    def select(start):
        found = fetched[..., start, :]
        for i in range(1, _GROUP):
            found = jnp.where((place == i)[:, None, None], fetched[..., start + i, :], found)
        return found

    def interpolate(low, high, part):
        return low + (high - low) * part[:, None]

    lefts, rights = select(0), select(1)
    upper, lower = (interpolate(lefts[:, i], rights[:, i], parts[1]) for i in (0, 1))
    return interpolate(upper, lower, parts[0]).reshape(x.shape)


def resampled_at_once(height: int, width: int) -> int:
    """Number of images of this size that `resample` is best given at once."""
    return max(1, _RESAMPLED_PIXELS // (height * width))


def defocus(x: Planes, radius: Float[Array, " batch"]) -> Planes:
    """`filters.defocus` of each image."""
    return _clip(_convolve(x, filters.disk, 3, radius))


def gaussian_blur(x: Planes, sigma: Float[Array, " batch"]) -> Planes:
    """`filters.gaussian_blur` of each image."""
    reach = 6
    weights = jax.vmap(lambda s: filters.gaussian_weights(s, reach))(sigma)
    margins = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    padded = jnp.pad(x, margins, "symmetric")
    rows, columns = (_banded(weights, size) for size in x.shape[2:])
    product = lax.Precision.HIGHEST
    x = jnp.einsum("bjh,bcjw->bchw", rows, padded, precision=product)
    return _clip(jnp.einsum("bchj,bjw->bchw", x, columns, precision=product))


def motion_blur(x: Planes, params: tuple) -> Planes:
    """`filters.motion_blur` of each image; `params` are lengths and angles."""
    return _clip(_convolve(x, filters.line, 4, *params))


def sharpness(x: Planes, factor: Float[Array, " batch"]) -> Planes:
    """`filters.sharpness` of each image."""
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    middle = x[:, :, 1:-1, 1:-1]
    change = (1 - factor)[:, None, None, None] * ((total - 9 * middle) / 13)
    return _clip(x + jnp.pad(change, ((0, 0), (0, 0), (1, 1), (1, 1))))


def change_density(x: Planes, params: tuple) -> Planes:
    """`stain.change_density` of each image; `params` are changes and additions."""
    change, added = params
    density = -jnp.log(jnp.maximum(x, 1.0) / 255)
    total = added[:, :, None, None]
    for channel in range(3):
        total = total + density[:, channel, None] * change[:, channel, :, None, None]
    return _clip(x * jnp.exp(-total))


def random_conv(x: Planes, params: tuple) -> Planes:
    """`filters.random_conv` of each image; `params` are kernels and strengths."""
    kernel, strength = params
    height, width = x.shape[2:]
    padded = jnp.pad(x - filters.GREY, ((0, 0), (0, 0), (1, 1), (1, 1)), "symmetric")
    windows = [
        padded[:, :, row : row + height, column : column + width]
        for row, column in itertools.product(range(3), repeat=2)
    ]
    found = jnp.einsum(
        "bphw,bpc->bchw",
        jnp.concatenate(windows, 1),
        kernel.reshape(len(x), -1, x.shape[1]),
        precision=lax.Precision.HIGHEST,
    )
    return _clip(x + strength[:, None, None, None] * (found + filters.GREY - x))


# Effects that have a form of their own here.
EFFECTS: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "defocus": defocus,
    "blur": gaussian_blur,
    "motion_blur": motion_blur,
    "sharpness": sharpness,
    "smear": change_density,
    "random_conv": random_conv,
}


def _clip(x):
    return jnp.clip(x, 0.0, 255.0)


def _banded(weights: Float[Array, "batch taps"], size: int) -> Float[Array, "batch padded size"]:
    """The matrices that filter `size` pixels with margins along one axis."""
    taps = weights.shape[1]
    step = np.arange(size + taps - 1)[:, None] - np.arange(size)[None]
    total = jnp.zeros((), jnp.float32)
    for tap in range(taps):
        total = total + jnp.where((step == tap)[None], weights[:, tap, None, None], 0.0)
    return total


def _convolve(
    x: Planes, weigh: Callable[..., jax.Array], reach: int, *params: Float[Array, " batch"]
) -> Planes:
    """Filters each image by its own kernel, as one product with a banded matrix.

    The matrix has the bands of all the kernel's rows, one below the other.

    Args:
      x: The images.
      weigh: `filters.disk` or `filters.line`.
      reach: Radius of the kernel in pixels.
      *params: Arguments of `weigh` after the offsets, for each image.
    """
    height, width = x.shape[2:]
    rows = np.arange(-reach, reach + 1)
    step = np.arange(width + 2 * reach)[:, None] - np.arange(width)[None] - reach
    kernel = np.broadcast_arrays(rows[:, None], rows[None])
    bands = np.broadcast_arrays(rows[:, None, None], step[None])

    def matrix(*params):
        return weigh(*bands, *params, reach=reach) / weigh(*kernel, *params, reach=reach).sum()

    padded = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), "symmetric")
    shifted = [padded[:, :, start : start + height] for start in range(2 * reach + 1)]
    return jnp.einsum(
        "bchj,bjw->bchw",
        jnp.concatenate(shifted, -1),
        jax.vmap(matrix)(*params).reshape(len(x), -1, width),
        precision=lax.Precision.HIGHEST,
    )
