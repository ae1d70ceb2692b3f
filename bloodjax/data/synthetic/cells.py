"""Renders stained blood cells procedurally: one white cell per image, on a smear with red cells.

The rendering follows a microscope. Shapes, described by signed distances to their outlines, add
stain to the glass; the stain absorbs light by the Beer-Lambert law; lens and camera add blur and
noise. Stain, light, focus, size and position vary so much that colour alone does not distinguish
the kinds of cell, but the structure of nucleus and cytoplasm does.

Lengths are in units of half the image, as in `bloodjax.data.synthetic.morphology`.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os

import numpy as np
import scipy
from jaxtyping import Bool, Float32, Int32, UInt8

from bloodjax.data.synthetic.morphology import KINDS, STAINS, Morphology, Range

Field = Float32[np.ndarray, "n size size"]

TURN: Range = (0.0, 2 * math.pi)
LIGHT = (0.97, 0.89, 0.80)  # red, green and blue of the empty glass under a warm lamp
# Position far outside the image, for a shape that the image does not show.
AWAY = 9.0
# Pixels rendered at once: few enough that their fields fit in the cache of a core.
CHUNK_PIXELS = 2**17


def render_cells(
    labels: Int32[np.ndarray, " n"], size: int, seed: int, workers: int | None = None
) -> UInt8[np.ndarray, "n size size 3"]:
    """Renders one image for each label.

    Args:
      labels: Index into KINDS of each image.
      size: Height and width in pixels, 16 or more.
      seed: Random seed; the images depend on labels, size and seed only.
      workers: Number of threads, by default one per core.
    """
    return render_with_masks(labels, size, seed, workers)[0]


def render_with_masks(
    labels: Int32[np.ndarray, " n"], size: int, seed: int, workers: int | None = None
) -> tuple[UInt8[np.ndarray, "n size size 3"], Bool[np.ndarray, "n size size"]]:
    """Renders the images of `render_cells`, and where the white cell is in each of them.

    The arguments are those of `render_cells`.

    Returns:
      The images, and the pixels of which at least half lies inside the outline of the white cell,
      before lens and camera blur it.
    """
    images = np.empty((len(labels), size, size, 3), np.uint8)
    masks = np.empty((len(labels), size, size), bool)
    step = max(1, CHUNK_PIXELS // size**2)
    chunks = []
    for label, kind in enumerate(KINDS.values()):
        where = np.flatnonzero(labels == label)
        chunks += [(kind, where[i : i + step]) for i in range(0, len(where), step)]
    seeds = np.random.SeedSequence(seed).spawn(len(chunks))

    def render_chunk(chunk, chunk_seed):
        kind, where = chunk
        smear = _Smear(len(where), size, chunk_seed)
        radius = smear.sample(kind.radius)
        smear.red_cells(room=radius)
        smear.strays(room=radius)
        masks[where] = smear.white_cell(kind, radius) >= 0.5
        images[where] = smear.to_images()

    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        list(pool.map(render_chunk, chunks, seeds))
    return images, masks


class _Smear:
    """`n` images while they are rendered: the amount of each stain at every pixel."""

    def __init__(self, n: int, size: int, seed: np.random.SeedSequence):
        self.n, self.size = n, size
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.stains = {name: np.zeros((n, size, size), np.float32) for name in STAINS}
        # Wavy coordinates, so that no shape is a perfect ellipse.
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        self.x = axis[None, None, :] + 0.015 * self.waves((2.0, 6.0))
        self.y = axis[None, :, None] + 0.015 * self.waves((2.0, 6.0))

    def sample(self, bounds: Range, count: int | None = None) -> np.ndarray:
        """Uniform samples, one per image: float32 [n, 1, 1], or [count, n, 1, 1]."""
        shape = (self.n, 1, 1) if count is None else (count, self.n, 1, 1)
        return self.rng.uniform(*bounds, shape).astype(np.float32)

    def polar(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of points at `distance` from the centre in random directions."""
        angle = self.sample(TURN)
        return distance * np.cos(angle), distance * np.sin(angle)

    def waves(self, frequency: Range, count: int = 3) -> Field:
        """A smooth random field of unit variance: a sum of plane waves, `frequency` in radians."""
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        total = np.zeros((self.n, self.size, self.size), np.float32)
        for _ in range(count):
            kx, ky = self.polar(self.sample(frequency))
            x = kx * axis[None, None, :] + self.sample(TURN)
            y = ky * axis[None, :, None]
            # sin(x + y), with sines and cosines of the axes only.
            total += np.sin(x) * np.cos(y) + np.cos(x) * np.sin(y)
        return total * math.sqrt(2 / count)

    def texture(self, grain: float) -> Field:
        """A random field of zero mean and unit variance with spots of `grain` in radius."""
        noise = self.rng.random((self.n, self.size, self.size), np.float32) - 0.5
        # A difference of Gaussians keeps spots of one size; the size is at least a pixel.
        sigma = max(0.5, grain * self.size / 2)
        near, far = (
            scipy.ndimage.gaussian_filter(noise, (0, width, width), truncate=2.5, mode="wrap")
            for width in (sigma, 1.6 * sigma)
        )
        spots = near - far
        return spots / spots.std((1, 2), keepdims=True)

    def inside(self, distance: Field) -> Field:
        """1 inside an outline, 0 outside, from the signed distance to it; linear over one pixel."""
        return np.clip(0.5 - distance * (self.size / 2), 0, 1)

    def cover(self, where: Field, **amounts: np.ndarray) -> None:
        """Covers the area `where` with something opaque that has these `amounts` of stain."""
        for name, stain in self.stains.items():
            stain *= 1 - where
            if name in amounts:
                stain += where * amounts[name]

    def disc(self, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> Field:
        """Distance from the centre (x, y) of a randomly turned ellipse, in units of its radii."""
        angle, aspect = self.sample(TURN), self.sample((0.85, 1.0))
        dx, dy = self.x - x, self.y - y
        cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
        return np.sqrt((cos * dx + sin * dy) ** 2 + ((cos * dy - sin * dx) / aspect) ** 2)

    def red_cells(self, room: np.ndarray, count: int = 9) -> None:
        """Adds biconcave discs in the whole image, outside the radius `room` of the white cell."""
        size, pallor = self.sample((0.32, 0.46)), self.sample((0.3, 0.8))
        # Different squares of a 5 x 5 board, so that the discs do not pile up.
        board = np.tile(np.arange(25), (self.n, 1))
        square = self.rng.permuted(board, axis=1)[:, :count].T[..., None, None]
        x = (square % 5 - 2).astype(np.float32) * 0.6 + self.sample((-0.2, 0.2), count)
        y = (square // 5 - 2).astype(np.float32) * 0.6 + self.sample((-0.2, 0.2), count)
        radius = size * self.sample((0.85, 1.1), count)
        push = np.maximum(1, (room + 0.8 * radius) / np.sqrt(x**2 + y**2 + 1e-6))
        for k in range(count):
            r = self.disc(push[k] * x[k], push[k] * y[k], radius[k])
            thickness = 1 - pallor * np.maximum(0, 1 - (r / 0.7) ** 2)
            self.stains["haemoglobin"] += thickness * self.inside((r - 1) * radius[k])

    def strays(self, room: np.ndarray) -> None:
        """Adds part of another white cell and up to two platelets."""
        radius = self.sample((0.45, 0.7))
        distance = np.maximum(1.1, room + 0.9 * radius)
        x, y = self.polar(np.where(self.sample((0.0, 1.0)) < 0.3, distance, AWAY))
        body = self.inside((self.disc(x, y, radius) - 1) * radius)
        self.cover(body, blue=self.sample((0.0, 0.8)), eosin=self.sample((0.0, 0.8)))
        x, y = x + self.sample((-0.15, 0.15)), y + self.sample((-0.15, 0.15))
        radius = radius * self.sample((0.6, 0.85))
        nucleus = body * self.inside((self.disc(x, y, radius) - 1) * radius)
        self.cover(nucleus, chromatin=self.sample((0.7, 1.1)))
        for _ in range(2):
            radius = self.sample((0.03, 0.12))
            distance = room + radius + self.sample((0.0, 0.4))
            x, y = self.polar(np.where(self.sample((0.0, 1.0)) < 0.5, distance, AWAY))
            platelet = self.inside((self.disc(x, y, radius) - 1) * radius)
            self.stains["azure"] += platelet * self.sample((0.4, 1.0))

    def nucleus(self, kind: Morphology, u: Field, v: Field) -> Field:
        """Signed distance to the outline of the nucleus: lobes along an arc, joined by strands."""
        last = self.rng.integers(*kind.lobes, (self.n, 1, 1), endpoint=True) - 1
        # All images have the same number of lobes; the surplus ones coincide with the last.
        slots = max(2, kind.lobes[1])
        k = np.minimum(np.arange(slots)[:, None, None, None], last)
        angle = self.sample(kind.span) * (k / np.maximum(last, 1) - 0.5).astype(np.float32)
        arc = np.take_along_axis(self.sample(kind.arc, slots), k, axis=0)
        lobe = np.take_along_axis(self.sample(kind.lobe, slots), k, axis=0)
        x, y = arc * np.cos(angle), arc * np.sin(angle)
        x += self.sample(kind.offset) - x.mean(0)
        bridge = self.sample(kind.bridge)
        distance = np.full_like(u, np.inf)
        for a, b in itertools.pairwise(range(slots)):
            # The nearest point on the line between two lobes, at fraction t of it. The nucleus is
            # as wide as the lobes at the ends of the line, and as the strand at its middle.
            ex, ey = x[b] - x[a], y[b] - y[a]
            du, dv = u - x[a], v - y[a]
            t = np.clip((du * ex + dv * ey) / (ex**2 + ey**2 + 1e-6), 0, 1)
            width = lobe[a] + t * (lobe[b] - lobe[a])
            width *= 1 - (1 - bridge) * (4 * t * (1 - t)) ** 2
            away = np.sqrt((du - t * ex) ** 2 + (dv - t * ey) ** 2)
            np.minimum(distance, away - width, out=distance)
        return distance

    def white_cell(self, kind: Morphology, radius: np.ndarray) -> Field:
        """Adds the cell in the middle, over everything else, and returns the area it covers."""
        angle, aspect = self.sample(TURN), self.sample((0.9, 1.1))
        dx, dy = self.x - self.sample((-0.1, 0.1)), self.y - self.sample((-0.1, 0.1))
        # Coordinates along the cell's own axes, in units of its radii.
        u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * aspect)
        v = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius / aspect)
        outline = np.sqrt(u**2 + v**2) - 1 + kind.rough * self.waves((4.0, 14.0))
        body = self.inside(outline * radius)
        fine = self.texture(0.02)
        haze = 1 + 0.1 * self.waves((3.0, 10.0)) + 0.08 * fine
        for _ in range(kind.vacuoles):
            # A vacuole with a negative radius is invisible, so their number varies.
            x, y = self.polar(self.sample((0.5, 0.95)))
            r = np.sqrt((u - x) ** 2 + (v - y) ** 2)
            haze *= 1 - 0.85 * self.inside((r - self.sample((-0.1, 0.16))) * radius)
        amounts = {name: haze * self.sample(amount) for name, amount in kind.cytoplasm.items()}
        self.cover(body, **amounts)

        bare = body
        if kind.lobes[1]:
            depth = self.nucleus(kind, u, v) + 0.02 * self.waves((6.0, 14.0))
            rim = np.clip(1 + depth / 0.12, 0, 1)
            clumps = 0.9 + 0.15 * rim + 0.14 * self.texture(0.035) + 0.06 * fine
            nucleus = body * self.inside(depth * radius)
            self.cover(nucleus, chromatin=clumps * self.sample(kind.density))
            if not kind.covered:
                bare = body * (1 - nucleus)
        grains = np.clip(1.6 * (self.texture(kind.grain) - self.sample(kind.sparse)), 0, 1)
        self.stains[kind.granule] += bare * grains * self.sample(kind.granules)
        return body

    def to_images(self) -> UInt8[np.ndarray, "n size size 3"]:
        """Renders the smear as seen by the camera; stain, light, focus and noise vary by image."""
        rng, n = self.rng, self.n
        strength = rng.normal(0, 0.15, (n, 1, 1))
        hue = rng.normal(0, 0.05, (n, 1, 3)) + rng.normal(0, 0.08, (n, len(STAINS), 3))
        dyes = (np.array(list(STAINS.values())) * np.exp(strength + hue)).astype(np.float32)
        light = (LIGHT * np.exp(rng.normal(0, 0.04, (n, 3)))).astype(np.float32)
        tilt = 1 + self.sample((-0.1, 0.1)) * self.x + self.sample((-0.1, 0.1)) * self.y
        image = np.empty((n, self.size, self.size, 3), np.float32)
        for channel in range(3):
            density = sum(
                amount * dyes[:, i, channel, None, None]
                for i, amount in enumerate(self.stains.values())
            )
            image[..., channel] = light[:, channel, None, None] * tilt * np.exp(-density)
        for i, blur in enumerate(rng.uniform(0.004, 0.023, n) * (self.size / 2)):
            scipy.ndimage.gaussian_filter(image[i], (blur, blur, 0), output=image[i], truncate=3)
        noise = rng.standard_normal(image.shape, np.float32)
        image += noise * self.sample((0.004, 0.02))[..., None]
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
