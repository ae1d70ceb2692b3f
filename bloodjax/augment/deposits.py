"""Deposits on the slide or the lens: drops of stain, dust, bubbles of air.

They hide parts of the cell, or cover them with a half-transparent layer. A network that has seen
them looks at what is left of the cell (as with `erase`), and does not take a deposit for a nucleus.
Spots are computed from distances, without drawing, so that all platforms do the same.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from bloodjax.augment.filters import Image, Scalar

# Most spots in an image. Every image computes as many; those left out have no opacity.
MOST_SPOTS = 8
# Largest radius of a spot and width of a rim, as shares of the image's side.
_LARGEST, _RIM = 0.2, 0.02
_SMALLEST = 0.01
# How far the edge of a ragged spot is from a circle, as a share of the radius.
_RAGGED = 0.4


# The fields are annotated as trees, because they may have a leading axis for the batch.
@flax.struct.dataclass
class Spots:
    """The spots of one image; all of one colour and kind.

    Attributes:
      centre: float32 [spots, 2], row and column in pixels; pixel (i, j) is at (i, j).
      radius: float32 [spots], mean radius in pixels.
      ragged: float32 [spots, 2, 2], amplitudes of cos and sin of 2 and of 3 turns of the edge, as
        shares of the radius; 0 is a circle.
      opacity: float32 [spots], share of the image that the rim hides, 0..1.
      inside: float32 [], opacity within the rim as a share of the rim's, 0..1.
      rim: float32 [], width of the rim in pixels.
      blur: float32 [], width of the edge in pixels, above 0.
      colour: float32 [3], in 0..255.
    """

    centre: PyTree
    radius: PyTree
    ragged: PyTree
    opacity: PyTree
    inside: PyTree
    rim: PyTree
    blur: PyTree
    colour: PyTree


def cover(x: Image, spots: Spots) -> Image:
    """Covers the image with spots; where two overlap, the more opaque one counts.

    Args:
      x: The image.
      spots: The spots; parts of them may be outside the image.
    """
    height, width, _ = x.shape

    def of_each(values):
        return values[:, None, None]

    down = jnp.arange(height, dtype=jnp.float32)[None, :, None] - of_each(spots.centre[:, 0])
    right = jnp.arange(width, dtype=jnp.float32)[None, None] - of_each(spots.centre[:, 1])
    distance = jnp.maximum(jnp.sqrt(down * down + right * right), 1e-3)
    # Cosine and sine of the angle, and from them those of two and three times the angle.
    cosine, sine = right / distance, down / distance
    cosine2, sine2 = cosine * cosine - sine * sine, 2 * cosine * sine
    cosine3, sine3 = cosine * cosine2 - sine * sine2, sine * cosine2 + cosine * sine2
    ragged = spots.ragged
    wave = (
        of_each(ragged[:, 0, 0]) * cosine2
        + of_each(ragged[:, 0, 1]) * sine2
        + of_each(ragged[:, 1, 0]) * cosine3
        + of_each(ragged[:, 1, 1]) * sine3
    )
    depth = of_each(spots.radius) * (1 + wave) - distance
    outer = jnp.clip(depth / spots.blur + 0.5, 0.0, 1.0)
    inner = jnp.clip((depth - spots.rim) / spots.blur + 0.5, 0.0, 1.0)
    opacity = of_each(spots.opacity) * outer * (1 - (1 - spots.inside) * inner)
    hidden = opacity.max(0)[..., None]
    return jnp.clip(x + hidden * (spots.colour[None, None] - x), 0.0, 255.0)


def random_spots(key: Key[Array, ""], size: tuple[int, int], amount: Scalar) -> Spots:
    """Samples the spots of an image: one to `MOST_SPOTS`, few more often than many.

    About a fifth of the images have black spots and a fifth white ones; the others have a colour
    between. A rim is up to twice as opaque as what is within it, as that of a bubble is.

    Args:
      key: Random key.
      size: Height and width of the image.
      amount: 0..1; the largest radius is 0.01 to 0.2 of the image's side. At 0 there is no spot.
    """
    side = float(min(size))
    for_image, for_spots = jax.random.split(key)
    of_image = jax.random.uniform(for_image, (8,), jnp.float32)
    of_spots = jax.random.uniform(for_spots, (MOST_SPOTS, 7), jnp.float32)
    count = 1 + jnp.floor((MOST_SPOTS - 1e-3) * of_image[0] ** 2)
    largest = side * (_SMALLEST + (_LARGEST - _SMALLEST) * amount)
    is_there = (jnp.arange(MOST_SPOTS, dtype=jnp.float32) < count) & (amount > 0)
    ragged = _RAGGED * of_image[2] * (of_spots[:, 3:] - 0.5)
    grey = 2 * of_image[4] - 0.5
    colour = 255 * jnp.clip(grey + 0.3 * (of_image[5:] - 0.5), 0.0, 1.0)
    return Spots(
        centre=of_spots[:, :2] * jnp.array(size, jnp.float32)[None],
        radius=largest * (0.4 + 0.6 * of_spots[:, 2]),
        ragged=ragged.reshape(MOST_SPOTS, 2, 2),
        opacity=jnp.where(is_there, jnp.minimum(0.3 + 0.9 * of_image[1], 1.0), 0.0),
        inside=1 - 0.5 * of_image[3],
        rim=jnp.float32(_RIM * side),
        blur=1 + _RIM * side * of_image[2],
        colour=colour,
    )
