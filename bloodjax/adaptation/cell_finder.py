"""Finds the white cell of an image: its nucleus, its outline and the colour of the background.

Everything is measured in optical density relative to the image's own background, so that lamp and
white balance do not matter. The nucleus is found by the dark stain: density in red and green less
density in blue, which is large where chromatin is stained and small in red cells and eosinophilic
granules. Its threshold is Otsu's (1979, https://doi.org/10.1109/TSMC.1979.4310076), per image. The
outline of the cell is where rays from the nucleus first meet the background; rays that run into
a touching cell are longer than most others, and are cut.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy
from jaxtyping import Bool, Float, UInt8

from bloodjax.data.lazy import AT_ONCE, Images

Field = Float[np.ndarray, "n size size"]
Mask = Bool[np.ndarray, "n size size"]
Points = Float[np.ndarray, "n 2"]
Numbers = Float[np.ndarray, " n"]

# Side in pixels to which larger images are averaged down, by an integer factor.
_SIDE = 96
# Background: pixels whose density in green light differs by at most this from the fitted light.
_BACKGROUND_RANGE = 0.08
_LEAST_BACKGROUND = 0.04  # share of the image
_EVERY = 3  # the fit takes each third pixel of each third row
_FITS = 4  # each to the pixels that the one before calls background
_STIFFNESS = 4.0  # of the light's slope: so many pixels count for a slope of 0
# Nucleus: its threshold is Otsu's, within these shares of the highest density.
_NUCLEUS_BOUNDS = (0.4, 0.7)
_BINS = 64  # of the histogram that the threshold is taken from
_LEAST_DENSITY = 0.45  # of the dark stain; red cells have up to 0.35
_LEAST_AREA = 0.002  # share of the image
_GAP = 0.05  # between two lobes of one nucleus, at most, in sides of the image
# A pixel at this distance from the middle of the image, in sides, has the weight 1/e.
_CENTRALITY = 0.28
_CENTRAL = 0.1  # least weight of pixels that the highest density is taken from
# Cell: its density exceeds the background's noise so many times, within these bounds.
_NOISE = 5.0
_FOREGROUND_BOUNDS = (0.05, 0.075)
# Rays to the outline. Those that run into other cells are longer than a low quantile of all rays:
# they are cut at a multiple of it. Rays from the nucleus, which may be at the side of the cell,
# differ more in length than those from the middle of the cell.
_RAYS = 48
_USUAL_RAY = 0.3
_LONGEST_RAYS = (1.35, 1.12)
_MOST_CUT = 0.15  # share of rays of a cell that is not cut by the border of the image


@dataclasses.dataclass(frozen=True)
class FoundCells:
    """What was found in each of n images.

    Positions are (y, x) in pixels of the image, whose upper left corner is (0, 0): the centre of
    the first pixel is (0.5, 0.5). Optical densities are natural logarithms of background over
    light, for red, green and blue. What was not found of a cell is NaN.

    Attributes:
      background: Colour (red, green, blue) of the empty glass, in 0..255.
      nucleus_centre: Centre of gravity of the nucleus, all lobes together. Of a platelet, which has
        none, its dark part.
      nucleus_diameter: Diameter of the disc of the nucleus' area.
      nucleus_density: Mean optical density of the nucleus.
      cell_centre: Centre of gravity of nucleus and cytoplasm.
      cell_diameter: Diameter of the disc of the cell's area.
      cell_box: Top, left, bottom and right of the cell.
      cell_density: Mean optical density of the cell.
      has_nucleus: Whether a nucleus was found: the six fields above are numbers.
      is_whole: Whether background was seen and the border of the image does not cut the cell, so
        that the cell's fields can be relied on.
    """

    background: Float[np.ndarray, "n 3"]
    nucleus_centre: Points
    nucleus_diameter: Numbers
    nucleus_density: Float[np.ndarray, "n 3"]
    cell_centre: Points
    cell_diameter: Numbers
    cell_box: Float[np.ndarray, "n 4"]
    cell_density: Float[np.ndarray, "n 3"]
    has_nucleus: Bool[np.ndarray, " n"]
    is_whole: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.has_nucleus)


def find(images: Images) -> FoundCells:
    """Finds the white cell that is nearest to the middle of each image.

    Args:
      images: At least one image, uint8 [n, size, size, 3], RGB, in memory or lazy.
    """
    parts = [
        _find(np.asarray(images[start : start + AT_ONCE]))
        for start in range(0, len(images), AT_ONCE)
    ]
    names = [field.name for field in dataclasses.fields(FoundCells)]
    return FoundCells(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _find(images: UInt8[np.ndarray, "n full full 3"]) -> FoundCells:
    light, factor = _shrunk(images)
    size = light.shape[1]
    light = scipy.ndimage.uniform_filter(light, (0, 3, 3, 0), mode="nearest")
    background, empty_light, share = _background(light)
    density = empty_light - np.log(light + 1)
    stain = np.maximum(density[..., 0] + density[..., 1] - density[..., 2], 0)
    weight = _centrality(size)
    foreground = _foreground(density)
    dark = _dark(stain, weight * foreground)
    nucleus = _central_group(dark, stain * weight)
    empty = ~(foreground | dark)
    # Rays from the nucleus tell which other dark parts are lobes of it, and where the cell's middle
    # is; rays from there are of more equal length, so that longer ones are told from them.
    centre = _centre(nucleus)
    radii, _ = _rays(centre, nucleus, empty, _LONGEST_RAYS[0])
    cell = _filled(centre, radii, size)
    nucleus |= dark & cell
    centre = _centre(cell)
    radii, is_cut = _rays(centre, nucleus, empty, _LONGEST_RAYS[1])
    cell = _filled(centre, radii, size)
    nucleus = dark & cell
    area, cell_area = nucleus.sum((1, 2)), cell.sum((1, 2))
    has_nucleus = area >= _LEAST_AREA * size**2
    is_whole = has_nucleus & (is_cut <= _MOST_CUT) & (share >= _LEAST_BACKGROUND)

    def known(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float32)
        values[~has_nucleus] = np.nan
        return values

    return FoundCells(
        background=background,
        nucleus_centre=known(factor * _centre(nucleus)),
        nucleus_diameter=known(factor * np.sqrt(4 / np.pi * area)),
        nucleus_density=known(_mean(density, nucleus)),
        cell_centre=known(factor * _centre(cell)),
        cell_diameter=known(factor * np.sqrt(4 / np.pi * cell_area)),
        cell_box=known(factor * _box(cell)),
        cell_density=known(_mean(density, cell)),
        has_nucleus=has_nucleus,
        is_whole=is_whole,
    )


def _shrunk(images: UInt8[np.ndarray, "n full full 3"]) -> tuple[np.ndarray, int]:
    """The images as float32, large ones averaged down by a whole factor, and this factor."""
    factor = max(1, images.shape[1] // _SIDE)
    if factor == 1:
        return images.astype(np.float32), 1
    n, size = len(images), images.shape[1] // factor
    tiles = images[:, : size * factor, : size * factor].reshape(n, size, factor, size, factor, 3)
    return tiles.mean((2, 4), dtype=np.float32), factor


def _background(
    light: Float[np.ndarray, "n size size 3"],
) -> tuple[np.ndarray, np.ndarray, Numbers]:
    """Each image's background: its colour, the logarithm of its light, its share of the image.

    The light is taken to change evenly across the image: its logarithm is a plane.

    Returns:
      Colour at the middle of the image [n, 3]; logarithm of the light [n, size, size, 3]; share.
    """
    size = light.shape[1]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    ones = np.ones((size, size), np.float32)
    plane = np.stack([ones, axis[:, None] * ones, axis * ones], axis=-1)
    few = (slice(None), *(slice(_EVERY // 2, None, _EVERY),) * 2)
    logs, basis = np.log(light[few] + 1), plane[few[1:]].reshape(-1, 3)
    logs = logs.reshape(len(light), -1, 3)
    # All stains absorb green. Of the brightest pixels a few may be dust or refraction.
    kth = int(0.97 * logs.shape[1])
    level = np.partition(logs[..., 1], kth, axis=1)[:, kth, None] - _BACKGROUND_RANGE / 2
    for _ in range(_FITS):
        is_background = np.abs(logs[..., 1] - level) <= _BACKGROUND_RANGE
        weighted = basis.T[None] * is_background[:, None].astype(np.float32)
        # Few pixels do not tell a slope: it is held near 0.
        normal = weighted @ basis + np.diag([1e-3, _STIFFNESS, _STIFFNESS]).astype(np.float32)
        fitted = np.linalg.solve(normal, weighted @ logs)
        level = fitted[..., 1] @ basis.T
    share = (np.abs(logs[..., 1] - level) <= _BACKGROUND_RANGE).mean(1)
    colour = np.clip(np.exp(fitted[:, 0]) - 1, 0, 255)
    return colour, (plane.reshape(-1, 3) @ fitted).reshape(light.shape), share


def _centrality(size: int) -> Float[np.ndarray, "size size"]:
    """The weight of each pixel: the cell in question is near the middle of the image."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return np.exp(-(axis[:, None] ** 2 + axis**2) / np.float32(_CENTRALITY**2))


def _dark(stain: Field, weight: Field) -> Mask:
    """Pixels with the dark stain of nuclei; none where the stain is nowhere dense.

    Args:
      stain: Optical density of the dark stain.
      weight: How much each pixel counts.
    """
    n = len(stain)
    flat = stain.reshape(n, -1)
    central = np.where(weight.reshape(n, -1) > _CENTRAL, flat, 0)
    k = int(0.98 * flat.shape[1])
    highest = np.partition(central, k, axis=1)[:, k]
    scaled = np.minimum(flat / np.maximum(highest, 1e-3)[:, None], 1)
    threshold = np.clip(_otsu(scaled, weight.reshape(n, -1)), *_NUCLEUS_BOUNDS)
    dark = scaled > threshold[:, None]
    return (dark & (highest > _LEAST_DENSITY)[:, None]).reshape(stain.shape)


def _otsu(values: Float[np.ndarray, "n pixels"], weights: Float[np.ndarray, "n pixels"]) -> Numbers:
    """The threshold in 0..1 that parts each row into the two most distinct classes."""
    n = len(values)
    bins = np.minimum((values * _BINS).astype(np.int32), _BINS - 1)
    bins += _BINS * np.arange(n, dtype=np.int32)[:, None]
    counts = np.bincount(bins.reshape(-1), weights.reshape(-1), n * _BINS).reshape(n, _BINS)
    levels = (np.arange(_BINS) + 0.5) / _BINS
    below, mass = np.cumsum(counts, axis=1), np.cumsum(counts * levels, axis=1)
    above = below[:, -1:] - below
    difference = mass / np.maximum(below, 1e-6) - (mass[:, -1:] - mass) / np.maximum(above, 1e-6)
    return (np.argmax(below * above * difference**2, axis=1) + 1) / _BINS


def _central_group(dark: Mask, weight: Field) -> Mask:
    """The group of dark parts, near one another, that is largest and most central."""
    n, size = dark.shape[:2]
    # Box filters grow the parts by half of the gap, and join those that are nearer than it.
    reach = 2 * max(1, round(_GAP * size / 2)) + 1
    grown = scipy.ndimage.maximum_filter(dark, (0, reach, reach))
    flat = np.zeros((3, 3, 3), bool)
    flat[1] = True
    parts, count = scipy.ndimage.label(grown, flat)
    parts[~dark] = 0
    score = np.bincount(parts.reshape(-1), weight.reshape(-1), count + 1)
    score[0] = 0
    image = np.zeros(count + 1, int)
    image[parts.reshape(n, -1)] = np.arange(n)[:, None]
    best = np.zeros(n, int)
    order = np.argsort(score, kind="stable")
    order = order[score[order] > 0]
    best[image[order]] = order  # of several parts of an image, the last one stays
    return (parts == best[:, None, None]) & (best > 0)[:, None, None]


def _foreground(density: Float[np.ndarray, "n size size 3"]) -> Mask:
    """Pixels that differ from the background by more than its noise."""
    away = np.sqrt((density**2).mean(-1))
    n = len(away)
    # Even in tight crops a tenth of the pixels is background.
    noise = np.quantile(away.reshape(n, -1)[:, ::_EVERY], 0.1, axis=1)
    threshold = np.clip(_NOISE * noise, *_FOREGROUND_BOUNDS).astype(np.float32)
    return away > threshold.reshape(n, 1, 1)


def _rays(
    centre: Points, nucleus: Mask, empty: Mask, longest: float
) -> tuple[Float[np.ndarray, "n rays"], Numbers]:
    """Each cell's radius in several directions, and the share of them in which it is cut off.

    A ray ends where it first meets the background after it left the nucleus for the last time.

    Args:
      centre: Where the rays start.
      nucleus: Pixels of the nuclei.
      empty: Pixels of the background.
      longest: Longest ray, relative to the quantile `_USUAL_RAY`.
    """
    n, size = nucleus.shape[:2]
    steps = np.arange(size, dtype=np.float32)  # one pixel each
    angles = np.arange(_RAYS, dtype=np.float32) * np.float32(2 * np.pi / _RAYS)
    y = centre[:, 0, None, None] + np.sin(angles)[:, None] * steps
    x = centre[:, 1, None, None] + np.cos(angles)[:, None] * steps
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    at = np.where(inside, y, 0).astype(np.int32) * size + np.where(inside, x, 0).astype(np.int32)
    at += (np.arange(n, dtype=np.int32) * size**2)[:, None, None]
    in_nucleus = inside & nucleus.reshape(-1)[at]
    ends = ~inside | empty.reshape(-1)[at]
    last = np.where(in_nucleus, steps.astype(np.int32), -1).max(-1)
    ends &= np.arange(size) > last[..., None]
    radii = np.where(ends.any(-1), ends.argmax(-1), size).astype(np.float32)
    leaves = ~np.take_along_axis(
        inside, np.minimum(radii, size - 1).astype(int)[..., None], axis=-1
    )[..., 0]
    limit = longest * np.quantile(radii, _USUAL_RAY, axis=1, keepdims=True).astype(np.float32)
    is_cut = (leaves & (radii < limit)).mean(1)
    return np.maximum(np.minimum(radii, limit), last), is_cut


def _filled(centre: Points, radii: Float[np.ndarray, "n rays"], size: int) -> Mask:
    """The star-shaped areas of rays from centres."""
    axis = np.arange(size, dtype=np.float32) + 0.5
    y = axis[:, None] - centre[:, 0, None, None]
    x = axis - centre[:, 1, None, None]
    ray = np.round(np.arctan2(y, x) * (_RAYS / (2 * np.pi))).astype(np.int32) % _RAYS
    limit = np.take_along_axis(radii, ray.reshape(len(radii), -1), axis=1).reshape(ray.shape)
    return y**2 + x**2 <= limit**2


def _centre(mask: Mask) -> Points:
    """Centre of gravity of each mask; the middle of the image for an empty one."""
    size = mask.shape[1]
    axis = np.arange(size) + 0.5 - size / 2
    rows, columns = mask.sum(2), mask.sum(1)
    moments = np.stack([rows @ axis, columns @ axis], 1)
    return size / 2 + moments / np.maximum(rows.sum(1, keepdims=True), 1)


def _box(mask: Mask) -> Float[np.ndarray, "n 4"]:
    """Top, left, bottom and right of each mask."""
    rows, columns = mask.any(2), mask.any(1)
    size = mask.shape[1]
    first = [lines.argmax(1) for lines in (rows, columns)]
    last = [size - lines[:, ::-1].argmax(1) for lines in (rows, columns)]
    return np.stack([*first, *last], 1).astype(np.float32)


def _mean(values: Float[np.ndarray, "n size size 3"], mask: Mask) -> Float[np.ndarray, "n 3"]:
    n = len(values)
    chosen = mask.reshape(n, 1, -1).astype(values.dtype)
    return (chosen @ values.reshape(n, -1, 3))[:, 0] / np.maximum(chosen.sum(-1), 1)
