"""Effects of optics, sensor and file formats: blur, sharpness, noise, compression; random filters.

Each function takes one RGB image, float32 in 0..255, and returns another. Strengths may be traced.
The functions are used with `jax.vmap`, and on CPU with `lax.map`, over the images. Since the kernel
differs between images, a filter is a sum of shifted slices instead of a convolution. Its reach is
static, and larger strengths are clipped to it.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

Image = Float[Array, "height width 3"]
Scalar = Float[Array, ""] | float

# JPEG's quantisation tables for quality 50 (ITU-T T.81, Annex K), by ascending vertical frequency.
_LUMA = """
16 11 10 16 24 40 51 61
12 12 14 19 26 58 60 55
14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77
24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""
_CHROMA = (
    """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
"""
    + "99 " * 32
)

# Mid-grey, about which `random_conv` varies.
GREY = 128.0

# The kernel of Pillow's SMOOTH filter, which `ImageEnhance.Sharpness` uses.
_SMOOTH = {
    offset: (5 if offset == (0, 0) else 1) / 13
    for offset in itertools.product((-1, 0, 1), repeat=2)
}


def vignette(x: Image, strength: Scalar) -> Image:
    """Darkens the image with the square of the distance from the centre.

    Args:
      x: The image.
      strength: Share of the light lost in the corners, 0..1; 0 changes nothing.
    """
    rows, columns = (np.linspace(-1, 1, size, dtype=np.float32) ** 2 / 2 for size in x.shape[:2])
    distance = rows[:, None, None] + columns[None, :, None]
    return _clip(x * (1 - strength * distance))


def sharpness(x: Image, factor: Scalar) -> Image:
    """Blends the image with a smoothed one, as Pillow's `ImageEnhance.Sharpness` does.

    Args:
      x: The image.
      factor: 0 smooths, 1 changes nothing, more sharpens. The outermost pixels never change.
    """
    smooth = _shifted_sum(x, list(_SMOOTH), list(_SMOOTH.values()))
    change = ((1 - factor) * (smooth - x))[1:-1, 1:-1]
    return _clip(x + jnp.pad(change, ((1, 1), (1, 1), (0, 0))))


def gaussian_blur(x: Image, sigma: Scalar, *, reach: int = 6) -> Image:
    """Gaussian blur; the image is mirrored at its edges, as in SciPy's `gaussian_filter`.

    Args:
      x: The image.
      sigma: Standard deviation in pixels; 0 changes nothing.
      reach: Radius of the kernel in pixels; it should be at least 3 `sigma`.
    """
    steps = range(-reach, reach + 1)
    weights = gaussian_weights(sigma, reach)
    rows = _shifted_sum(x, [(step, 0) for step in steps], weights)
    return _clip(_shifted_sum(rows, [(0, step) for step in steps], weights))


def defocus(x: Image, radius: Scalar, *, reach: int = 3) -> Image:
    """Defocus: the mean over a disk around each pixel.

    A pixel at distance d from the centre has the weight clip(radius + 1/2 - d, 0, 1), divided by
    the sum of all weights. The image is mirrored at its edges.

    Args:
      x: The image.
      radius: Radius of the disk in pixels; 0 changes nothing.
      reach: Largest radius.
    """
    offsets = _within(reach + 0.5)
    weights = disk(*np.array(offsets).T, radius, reach=reach)
    return _clip(_shifted_sum(x, offsets, weights / weights.sum()))


def motion_blur(x: Image, length: Scalar, angle: Scalar, *, reach: int = 4) -> Image:
    """Motion blur: the mean along a line segment around each pixel.

    The segment has the length `length` - 1. A pixel at distance d from it has the weight
    max(1 - d, 0), divided by the sum of all weights. The image is mirrored at its edges.

    Args:
      x: The image.
      length: Length of the trail of a point in pixels; 1 changes nothing.
      angle: Angle between the segment and the rows, in degrees, anticlockwise.
      reach: Largest distance from the segment's middle to its end, in pixels.
    """
    offsets = _within(reach + 1.0)
    weights = line(*np.array(offsets).T, length, angle, reach=reach)
    return _clip(_shifted_sum(x, offsets, weights / weights.sum()))


def gaussian_weights(sigma: Scalar, reach: int) -> Float[Array, " taps"]:
    """Weights of `gaussian_blur` for the offsets -reach .. reach along an axis; their sum is 1."""
    # Below this deviation only the kernel's centre has weight. It also avoids 0 / 0.
    spread = jnp.maximum(sigma, 1e-2)
    weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1, dtype=jnp.float32) / spread) ** 2)
    return weights / weights.sum()


def disk(down: np.ndarray, right: np.ndarray, radius: Scalar, *, reach: int = 3) -> Array:
    """Weights of `defocus`, before they are divided by their sum.

    Args:
      down: Rows from the centre.
      right: Columns from the centre; same shape.
      radius: See `defocus`.
      reach: See `defocus`.
    """
    distance = np.hypot(down, right).astype(np.float32)
    return jnp.clip(jnp.minimum(radius, reach) + 0.5 - distance, 0.0, 1.0)


def line(
    down: np.ndarray, right: np.ndarray, length: Scalar, angle: Scalar, *, reach: int = 4
) -> Array:
    """Weights of `motion_blur`, before they are divided by their sum.

    Args:
      down: Rows from the centre.
      right: Columns from the centre; same shape.
      length: See `motion_blur`.
      angle: See `motion_blur`.
      reach: See `motion_blur`.
    """
    down, right = down.astype(np.float32), right.astype(np.float32)
    sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    along, across = right * cosine - down * sine, right * sine + down * cosine
    beyond = jnp.maximum(jnp.abs(along) - jnp.clip((length - 1) / 2, 0.0, reach), 0.0)
    return jnp.maximum(1.0 - jnp.hypot(across, beyond), 0.0)


def random_levels(key: Key[Array, ""], size: tuple[int, int], bits: int) -> Image:
    """An image of independent random integers, uniform in 0 .. 2**bits - 1.

    Generating random bits takes most of the time of noise on a CPU, so a pixel's three channels
    share one 32-bit number.

    Args:
      key: Random key.
      size: Height and width.
      bits: Bits of each integer, at most 10.
    """
    shifts = jnp.array([0, bits, 2 * bits], jnp.uint32)[None, None]
    shifted = jax.random.bits(key, size, jnp.uint32)[..., None] >> shifts
    return (shifted & (2**bits - 1)).astype(jnp.float32)


def noise(x: Image, key: Key[Array, ""], std: Scalar) -> Image:
    """Adds Gaussian noise, independent for each pixel and channel, up to 3.3 standard deviations.

    Args:
      x: The image.
      key: Random key.
      std: Standard deviation in grey levels; 0 changes nothing.
    """
    return _clip(x + std * _normal(key, x.shape[:2]))


def shot_noise(x: Image, key: Key[Array, ""], std: Scalar) -> Image:
    """Adds Gaussian noise with a variance proportional to the intensity, like photon noise.

    Args:
      x: The image.
      key: Random key.
      std: Standard deviation at white, in grey levels; 0 changes nothing.
    """
    return _clip(x + std * jnp.sqrt(x / 255) * _normal(key, x.shape[:2]))


def impulse_noise(x: Image, key: Key[Array, ""], share: Scalar) -> Image:
    """Makes pixels black or white, like defective ones of a camera (salt and pepper).

    Args:
      x: The image.
      key: Random key.
      share: Share of the pixels that change, 0..1; half of them become black, half white.
    """
    drawn = jax.random.uniform(key, x.shape[:2], jnp.float32)[..., None]
    return jnp.where(drawn < share, jnp.where(drawn < share / 2, 0.0, 255.0), x)


def pixelate(x: Image, scale: Scalar) -> Image:
    """Reduces the resolution: Pillow's `resize` to size * scale by BOX, and back by NEAREST.

    Args:
      x: The image.
      scale: Share of the pixels along a side that remain; 1 changes nothing.
    """
    height, width, channels = x.shape
    rows, columns = _box_matrix(height, scale), _box_matrix(width, scale)
    # A TPU multiplies in bfloat16 by default, which would be wrong by a grey level.
    x = jnp.matmul(rows, x.reshape(height, -1), precision=lax.Precision.HIGHEST)
    x = x.reshape(height, width, channels).swapaxes(0, 1).reshape(width, -1)
    x = jnp.matmul(columns, x, precision=lax.Precision.HIGHEST)
    return _clip(x.reshape(width, height, channels).swapaxes(0, 1))


def random_conv(x: Image, kernel: Float[Array, "3 3 3 3"], strength: Scalar) -> Image:
    """Mixes the image with a convolution of it by a random kernel.

    It changes colours and local texture, and keeps shapes (Xu et al., "Robust and generalizable
    visual representation learning via random convolutions", 2021, arXiv:2007.13003). The kernel
    is applied to the distance from mid-grey. The image is mirrored at its edges.

    Args:
      x: The image.
      kernel: Weights by row, column, channel of the image and channel of the result.
      strength: Share of the convolved image; 0 changes nothing.
    """
    height, width, channels = x.shape
    padded = jnp.pad(x - GREY, ((1, 1), (1, 1), (0, 0)), "symmetric")
    # One product: a convolution whose kernel differs between images is slow.
    windows = [
        padded[row : row + height, column : column + width]
        for row, column in itertools.product(range(3), repeat=2)
    ]
    found = jnp.matmul(
        jnp.concatenate(windows, -1).reshape(height * width, -1),
        kernel.reshape(-1, channels),
        precision=lax.Precision.HIGHEST,
    )
    return _clip(x + strength * (found.reshape(x.shape) + GREY - x))


def random_kernel(key: Key[Array, ""]) -> Float[Array, "3 3 3 3"]:
    """A kernel for `random_conv`: by chance of 1x1 or 3x3 pixels.

    Weights are normal with variance 1 / (3 * pixels), so that the variance of independent values
    is kept (He et al., 2015, with a gain of 1).
    """
    size, weights = jax.random.split(key)
    drawn = jax.random.normal(weights, (3, 3, 3, 3))
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1.0
    is_point = jax.random.bernoulli(size)
    return drawn * jnp.where(is_point, centre * np.float32(3**-0.5), np.float32(27**-0.5))


def jpeg(x: Image, quality: Scalar) -> Image:
    """Simulates JPEG compression: YCbCr, 4:2:0 chroma, blocks of 8x8 quantised.

    Tables, their scaling by quality and the smooth upsampling of chroma are those of libjpeg. Only
    the frequencies are rounded. Every quality changes the image.

    Args:
      x: The image. It is padded to multiples of 16 by repeating its edges.
      quality: 1 (worst) to 100, rounded to an integer.
    """
    height, width, _ = x.shape
    padded = jnp.pad(x, ((0, -height % 16), (0, -width % 16), (0, 0)), "edge")
    red, green, blue = (padded[..., channel] for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = _halve(jnp.stack([(blue - luma) / 1.772, (red - luma) / 1.402]))
    luma = _quantise(luma - 128, _steps(_LUMA, quality)) + 128
    chroma = _double(_double(_quantise(chroma, _steps(_CHROMA, quality)), 1), 2)
    red = luma + 1.402 * chroma[1]
    blue = luma + 1.772 * chroma[0]
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return _clip(jnp.stack([red, green, blue], axis=-1)[:height, :width])


def _clip(x):
    return jnp.clip(x, 0.0, 255.0)


def _normal(key, size):
    """An image of standard normal numbers, discretised to 1024 quantiles."""
    middles = (random_levels(key, size, bits=10) + 0.5) / 1024
    return np.float32(math.sqrt(2)) * lax.erf_inv(2 * middles - 1)


def _within(distance: float) -> list[tuple[int, int]]:
    """All (row, column) offsets closer to (0, 0) than `distance` pixels."""
    steps = range(-math.ceil(distance), math.ceil(distance) + 1)
    return [step for step in itertools.product(steps, repeat=2) if math.hypot(*step) < distance]


def _shifted_sum(x, offsets, weights):
    """The weighted sum of the image shifted by each of the (row, column) `offsets`.

    The image is mirrored at its edges, and the outermost pixel is repeated (SciPy's "reflect").
    """
    height, width, channels = x.shape
    rows, columns = (max(abs(offset[axis]) for offset in offsets) for axis in (0, 1))
    margins = ((rows, rows), (columns, columns), (0, 0))
    # Merges columns and channels, because loops over a last axis of length 3 are slow on a CPU.
    padded = jnp.pad(x, margins, "symmetric").reshape(height + 2 * rows, -1)
    total = jnp.zeros((height, width * channels), x.dtype)
    for i, (down, right) in enumerate(offsets):
        start = (columns + right) * channels
        window = padded[rows + down : rows + down + height, start : start + width * channels]
        total = total + weights[i] * window
    return total.reshape(x.shape)


def _box_matrix(size: int, scale) -> Float[Array, "size size"]:
    """The matrix that replaces each pixel by the mean of its block.

    The arithmetic is in integers, because a pixel's centre may be exactly on the border of two
    blocks. As in Pillow, it then belongs to the left one.
    """
    blocks = jnp.clip(jnp.round(size * scale), 1, size).astype(jnp.int32)
    index = jnp.arange(size, dtype=jnp.int32)
    block = (2 * index + 1) * blocks // (2 * size)
    # Distance from the block's centre in pixels, times 2 * blocks. Half a block is then `size`.
    distance = ((2 * index + 1) * blocks)[None, :] - ((2 * block + 1) * size)[:, None]
    weights = ((distance > -size) & (distance <= size)).astype(jnp.float32)
    return weights / weights.sum(axis=1, keepdims=True)


def _steps(table: str, quality) -> Float[Array, " 64"]:
    """Quantisation steps of a block's 64 frequencies: the table scaled as in libjpeg."""
    quality = jnp.clip(jnp.round(jnp.asarray(quality)), 1, 100).astype(jnp.int32)
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    steps = (np.array(table.split(), np.int32) * percent + 50) // 100
    return jnp.clip(steps, 1, 255).astype(jnp.float32)


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of 8x8 pixels as a matrix [64, 64]."""
    frequency, pixel = np.mgrid[:8, :8]
    waves = np.cos((2 * pixel + 1) * frequency * np.pi / 16) / 2
    waves[0] /= np.sqrt(2)
    return np.kron(waves, waves).astype(np.float32)


def _quantise(planes, steps):
    """Rounds the frequencies of each 8x8 block of planes [..., height, width] to their steps."""
    *many, height, width = planes.shape
    blocks = planes.reshape(*many, height // 8, 8, width // 8, 8).swapaxes(-3, -2)
    cosines, steps = _cosines(), steps[None]
    # A TPU multiplies in bfloat16 by default, which would round more than a high quality does.
    waves = jnp.matmul(blocks.reshape(-1, 64), cosines.T, precision=lax.Precision.HIGHEST)
    waves = jnp.round(waves / steps) * steps
    pixels = jnp.matmul(waves, cosines, precision=lax.Precision.HIGHEST)
    return pixels.reshape(blocks.shape).swapaxes(-3, -2).reshape(planes.shape)


def _halve(planes):
    """Averages each 2x2 pixels of planes [planes, height, width]."""
    planes = planes[:, ::2] + planes[:, 1::2]
    return (planes[:, :, ::2] + planes[:, :, 1::2]) / 4


def _double(planes, axis: int):
    """Doubles the pixels along an axis: 3/4 nearest and 1/4 next pixel, as libjpeg does."""
    size = planes.shape[axis]
    margins = [(int(i == axis),) * 2 for i in range(planes.ndim)]
    near, far = 0.75 * planes, 0.25 * jnp.pad(planes, margins, "edge")
    before = near + lax.slice_in_dim(far, 0, size, axis=axis)
    after = near + lax.slice_in_dim(far, 2, size + 2, axis=axis)
    doubled = [n * (2 if i == axis else 1) for i, n in enumerate(planes.shape)]
    return jnp.stack([before, after], axis=axis + 1).reshape(doubled)
