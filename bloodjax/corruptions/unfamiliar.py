"""Images that a classifier of cells should not answer, made from cells or from nothing.

They compare the methods that detect such images. No real image of junk is needed to make them.
The parameters of each image are drawn at random; lengths are shares of its side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from jaxtyping import UInt8

from bloodjax.corruptions.base import Image, to_uint8
from bloodjax.corruptions.colour import STAINS

# (image, another image, generator) -> a new image of the same size.
Kind = Callable[[Image, Image, np.random.Generator], Image]


def shuffled(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """The patches of a 4 x 4 grid in random order: colours and textures without the shape."""
    del other
    patch = max(len(image) // 4, 1)
    side = patch * 4
    if side > len(image):
        return image[rng.permutation(len(image))]
    grid = image[:side, :side].reshape(4, patch, 4, patch, 3).swapaxes(1, 2).reshape(16, -1)
    mixed = grid[rng.permutation(16)].reshape(4, 4, patch, patch, 3).swapaxes(1, 2)
    out = image.copy()
    out[:side, :side] = mixed.reshape(side, side, 3)
    return out


def empty(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """A field without cells: the colour of the image's brightest tenth, with a camera's noise."""
    del other
    pixels = image.reshape(-1, 3)
    brightest = pixels[np.argsort(pixels.sum(1), kind="stable")[-max(len(pixels) // 10, 1) :]]
    noise = rng.normal(0, rng.uniform(1, 4), image.shape)
    return to_uint8(np.median(brightest, axis=0) + noise)


def defocused(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """A Gaussian blur of standard deviation 0.06 to 0.15: the cell is a spot."""
    del other
    sigma = rng.uniform(0.06, 0.15) * len(image)
    return to_uint8(scipy.ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def hue_turned(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """The colours turned around the axis of greys by 90 to 270 degrees."""
    del other
    angle = rng.uniform(0.5, 1.5) * np.pi
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * grey
    return to_uint8(image @ turn.T)


def inverted(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """The negative."""
    del other, rng
    return 255 - image


def noise(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Uniform noise in blocks of 1 pixel to an eighth of the side."""
    del other
    side = len(image)
    block = int(rng.integers(1, max(side // 8, 1) + 1))
    cells = rng.integers(0, 256, (-(-side // block), -(-side // block), 3), dtype=np.uint8)
    return cells.repeat(block, 0).repeat(block, 1)[:side, :side]


def gradient(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """A linear gradient between two random colours, in a random direction."""
    del other
    axis = np.linspace(-1, 1, len(image))
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * axis[:, None] + np.sin(angle) * axis[None, :]
    share = (along - along.min()) / max(np.ptp(along), 1e-9)
    first, last = rng.uniform(0, 255, (2, 3))
    return to_uint8(first + share[..., None] * (last - first))


def drawing(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Ellipses, boxes and lines in flat colours on a flat ground."""
    del other
    side = len(image)
    axis = np.linspace(-1, 1, side)
    y, x = axis[:, None], axis[None, :]
    out = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), image.shape).copy()
    for _ in range(int(rng.integers(3, 12))):
        dy, dx = y - rng.uniform(-0.8, 0.8), x - rng.uniform(-0.8, 0.8)
        height, width = rng.uniform(0.1, 0.7, 2)
        shape = rng.integers(3)
        if shape == 0:
            inside = (dy / height) ** 2 + (dx / width) ** 2 < 1
        elif shape == 1:
            inside = (np.abs(dy) < height) & (np.abs(dx) < width)
        else:
            angle = rng.uniform(0, np.pi)
            inside = np.abs(np.cos(angle) * dy + np.sin(angle) * dx) < 0.06
        out[inside] = rng.integers(0, 256, 3, dtype=np.uint8)
    return out


def text(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Dark lines of letter-like strokes on a light page."""
    del other
    side = len(image)
    page = np.full(image.shape, int(rng.integers(215, 256)), np.uint8)
    height = max(int(side * rng.uniform(0.04, 0.12)), 3)
    for top in range(height // 2, side - height, int(height * 1.6)):
        left = height // 2
        while left < side - height:
            strokes = rng.random((height, max(height * 2 // 3, 2))) < 0.45
            if rng.random() < 0.85:  # else: a space between words
                box = page[top : top + height, left : left + strokes.shape[1]]
                box[strokes[:, : box.shape[1]]] = int(rng.integers(0, 60))
            left += strokes.shape[1] + 1
    return page


def pieces(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Parts of two cells at the edges, with the boundary between the two images in the middle."""
    side = len(image)
    half = int(side * rng.uniform(0.4, 0.6))
    joined = np.concatenate([image[side - half :], other[: side - half]])
    return np.ascontiguousarray(np.rot90(joined, int(rng.integers(4))))


def collage(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Four whole cells at half the size."""
    small = [
        np.rot90(source[::2, ::2], int(rng.integers(4))) for source in (image, other, other, image)
    ]
    rows = [np.concatenate(small[i : i + 2], axis=1) for i in (0, 2)]
    side = len(image)
    return np.concatenate(rows)[:side, :side]


def other_laboratory(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """A cell with another stain, lamp, magnification and sharpness, all at once."""
    del other
    side = len(image)
    zoom = np.exp(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5))
    scaled = scipy.ndimage.affine_transform(
        scipy.ndimage.gaussian_filter(
            image.astype(np.float32), (rng.uniform(0.4, 1.2),) * 2 + (0,)
        ),
        np.array([1 / zoom, 1 / zoom, 1]),
        offset=[(side - 1) / 2 * (1 - 1 / zoom)] * 2 + [0],
        order=1,
        mode="mirror",
    )
    density = -np.log10((np.clip(scaled, 0, 255) + 1) / 256)
    amounts = density @ np.linalg.inv(STAINS) * np.exp(rng.uniform(-0.6, 0.6, 3))
    light = 256 * 10 ** -(amounts @ STAINS)
    return to_uint8(light * rng.uniform(0.7, 1.0) * rng.uniform(0.85, 1.1, 3) - 1)


KINDS: dict[str, Kind] = {
    "shuffled patches": shuffled,
    "empty field": empty,
    "defocused": defocused,
    "other hue": hue_turned,
    "negative": inverted,
    "noise": noise,
    "gradient": gradient,
    "drawing": drawing,
    "text": text,
    "pieces of two cells": pieces,
    "several cells": collage,
    "other laboratory": other_laboratory,
}


def make(
    kind: str, images: UInt8[np.ndarray, "n size size 3"], seed: int
) -> UInt8[np.ndarray, "n size size 3"]:
    """One image of a kind for each of some images of cells.

    Args:
      kind: A key of `KINDS`.
      images: At least one image.
      seed: Random seed; the result depends on the kind, the images and the seed only.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    others = np.roll(np.arange(len(images)), 1)
    return np.stack([KINDS[kind](images[i], images[j], rng) for i, j in enumerate(others)])
