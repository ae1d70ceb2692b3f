"""Small files with the keys, shapes and labels of MedMNIST's two-dimensional sets."""

import numpy as np

from bloodjax.data.formats import medmnist


def write(path, name, *, counts=(28, 14, 14), size=28, seed=0):
    """Writes a file of the set `name`; each label is a bar of white rows. Returns the path."""
    known, rng = medmnist.SETS[name], np.random.default_rng(seed)
    classes, arrays = len(known.classes), {}
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        images = rng.integers(0, 120, (n, size, size, 3), np.uint8)
        labels = (np.arange(n) % classes)[:, None]
        if known.is_multi_label:
            labels = (rng.random((n, classes)) < 0.3).astype(int)
            labels[np.arange(n), np.arange(n) % classes] = 1
            labels[0] = 0
        for i in range(n):
            has = np.flatnonzero(labels[i]) if known.is_multi_label else labels[i]
            for label in has:
                images[i, 2 * label : 2 * label + 2] = 255
        arrays[f"{split}_images"] = images[..., 0] if known.is_grey else images
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path
