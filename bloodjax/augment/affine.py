"""Affine maps of the plane, composed into one, and an image resampled once by the result.

A map is Float[2, 3]: from a pixel of the new image to the place in the old one that it shows,
(row, column, 1) -> (row, column), in pixels from the image's centre, rows downwards. Resampling
once, whatever was composed, costs one interpolation and blurs once.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

# What lies outside the image: itself mirrored about its outermost pixels, or those drawn out.
FILLS = ("reflect", "edge")


def identity() -> Float[Array, "2 3"]:
    """The map that changes nothing."""
    return jnp.eye(2, 3)


def linear(rows: tuple, columns: tuple) -> Float[Array, "2 3"]:
    """The map whose new row and column are these factors of the old (row, column)."""
    return jnp.array([[*rows, 0.0], [*columns, 0.0]], jnp.float32)


def rotation(degrees: Float[Array, ""]) -> Float[Array, "2 3"]:
    """Turns the image about its centre, anticlockwise as Pillow does."""
    angle = jnp.deg2rad(degrees)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return linear((cosine, sine), (-sine, cosine))


def translation(down: Float[Array, ""], right: Float[Array, ""]) -> Float[Array, "2 3"]:
    """Moves the image by so many pixels."""
    return identity().at[:, 2].set(-jnp.stack([down, right]))


def scaling(height: Float[Array, ""], width: Float[Array, ""]) -> Float[Array, "2 3"]:
    """Makes the image so many times as high and as wide, about its centre."""
    return linear((1.0 / height, 0.0), (0.0, 1.0 / width))


def compose(first: Float[Array, "2 3"], second: Float[Array, "2 3"]) -> Float[Array, "2 3"]:
    """The map that shows what `second` makes of the image that `first` has made."""
    # Spelt out: a matrix product may be rounded to bfloat16 by an accelerator.
    shift = first[:, 0] * second[0, 2] + first[:, 1] * second[1, 2] + first[:, 2]
    turned = first[:, :1] * second[:1, :2] + first[:, 1:2] * second[1:, :2]
    return jnp.concatenate([turned, shift[:, None]], axis=1)


def resample(
    image: Num[Array, "height width 3"], affine: Float[Array, "2 3"], fill: str
) -> Float[Array, "height width 3"]:
    """The image that the map shows, by bilinear interpolation.

    It is `scipy.ndimage.map_coordinates` at order 1, with mode "mirror" or "nearest".

    Args:
      image: whole numbers in 0..255.
      affine: see above.
      fill: a name of `FILLS`.
    """
    height, width = image.shape[:2]
    centre = ((height - 1) / 2, (width - 1) / 2)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - centre[0]
    columns = jnp.arange(width, dtype=jnp.float32)[None] - centre[1]
    places = [a[0] * rows + a[1] * columns + a[2] + c for a, c in zip(affine, centre, strict=True)]
    corners = [jnp.floor(place) for place in places]
    parts = [(p - c)[..., None] for p, c in zip(places, corners, strict=True)]
    (top, bottom), (left, right) = (
        (_inside(low, size, fill), _inside(low + 1, size, fill))
        for low, size in zip((c.astype(jnp.int32) for c in corners), (height, width), strict=True)
    )
    # The three colours in one number: a quarter of the time goes into looking pixels up.
    whole = image.astype(jnp.int32)
    packed = (whole[..., 0] | whole[..., 1] << 8 | whole[..., 2] << 16).ravel()

    def look(row, column):
        found = packed.at[row * width + column].get(mode="promise_in_bounds")
        colours = (found[..., None] >> jnp.array([0, 8, 16])[None, None]) & 255
        return colours.astype(jnp.float32)

    def between(low, high, part):
        return low + (high - low) * part

    upper = between(look(top, left), look(top, right), parts[1])
    lower = between(look(bottom, left), look(bottom, right), parts[1])
    return between(upper, lower, parts[0])


def _inside(index: Int32[Array, "height width"], size: int, fill: str):
    """Where a pixel outside is looked up."""
    if fill == "edge":
        return jnp.clip(index, 0, size - 1)
    period = max(2 * (size - 1), 1)
    index = jnp.abs(index) % period
    return jnp.minimum(index, period - index)
