"""Synthetic datasets: eight kinds of blood cell, rendered, with flaws on request."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from bloodjax.data.dataset import Dataset
from bloodjax.data.synthetic.cells import render_cells
from bloodjax.data.synthetic.morphology import KINDS
from bloodjax.errors import UserError

CLASSES = tuple(KINDS)


def render_dataset(
    n: int,
    size: int = 96,
    *,
    seed: int = 0,
    duplicates: int = 0,
    conflicts: int = 0,
    junk: int = 0,
) -> Dataset:
    """Renders a dataset in random order, with classes whose sizes differ by at most one.

    The flaws do not change the images of the cells.

    Args:
      n: Number of cells, 8 or more.
      size: Height and width in pixels, 16 or more.
      seed: Random seed.
      duplicates: Number of exact copies to add under the label of their original.
      conflicts: Number of exact copies to add under another label.
      junk: Number of images without a cell to add.

    Raises:
      UserError: A number is too small.
    """
    flaws = {"duplicates": duplicates, "conflicts": conflicts, "junk": junk}
    minimum = {"n": len(CLASSES), "size": 16}
    for name, value in {"n": n, "size": size, "seed": seed, **flaws}.items():
        bound = minimum.get(name, 0)
        if value < bound:
            raise UserError(f"synthetic data: {name} is {value}, expected {bound} or more")
    labels = np.arange(n, dtype=np.int32) % len(CLASSES)
    cells = Dataset(
        images=render_cells(labels, size, seed),
        labels=labels,
        names=tuple(str(i) for i in range(n)),
        classes=CLASSES,
        splits=("",) * n,
        groups=("",) * n,
    )
    return plant_flaws(cells, **flaws, seed=seed)[0]


def plant_flaws(
    dataset: Dataset, duplicates: int = 0, conflicts: int = 0, junk: int = 0, *, seed: int = 0
) -> tuple[Dataset, dict[str, list]]:
    """Adds known flaws to a dataset, to test an audit.

    No image is copied twice before all have been copied once.

    Args:
      dataset: Images of two or more classes.
      duplicates: Number of exact copies to add under the label of their original.
      conflicts: Number of exact copies to add under another label.
      junk: Number of copies of a drawing without a cell to add, under all labels in turn.
      seed: Random seed of originals, labels and order.

    Returns:
      The images and the flaws in random order, named "0", "1", ... in that order, and the flaws by
      these names: "duplicates" and "conflicts" list pairs (original, copy), "junk" lists names. A
      copy keeps the split and group of its original.
    """
    rng = np.random.default_rng(seed)
    n, classes = len(dataset), len(dataset.classes)
    # Each image once, then each twice, ...: np.resize repeats the permutation.
    originals = np.resize(rng.permutation(n), duplicates + conflicts)
    copied = dataset.take(originals)
    shift = np.repeat([0, 1], [duplicates, conflicts]) * rng.integers(1, classes, len(originals))
    drawing = cartoon(dataset.images.shape[1])
    order = rng.permutation(n + len(originals) + junk)
    names = tuple(str(position) for position in np.argsort(order))
    flawed = Dataset(
        images=np.concatenate([dataset.images, copied.images, np.repeat(drawing[None], junk, 0)]),
        labels=np.concatenate(
            [dataset.labels, (copied.labels + shift) % classes, np.arange(junk) % classes]
        ).astype(np.int32),
        names=names,
        classes=dataset.classes,
        splits=dataset.splits + copied.splits + ("",) * junk,
        groups=dataset.groups + copied.groups + ("",) * junk,
    )
    pairs = [(names[a], names[n + i]) for i, a in enumerate(originals)]
    planted = {
        "duplicates": pairs[:duplicates],
        "conflicts": pairs[duplicates:],
        "junk": list(names[n + len(originals) :]),
    }
    return flawed.take(order), planted


def cartoon(size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A smiling face in flat colours: an image that is not a cell."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.abs(axis)[None, :], axis[:, None]
    r = np.hypot(x, y)
    face = np.full((size, size, 3), (60, 150, 190), np.uint8)
    face[r < 0.8] = (250, 210, 50)
    face[np.hypot(x - 0.28, y + 0.22) < 0.12] = (20, 20, 20)
    face[(r > 0.42) & (r < 0.54) & (y > 0.15)] = (190, 40, 40)
    return face
