"""Challenge and MedMNIST files: images and labels as arrays in one npz."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from bloodjax.data import images
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats.archive import open_zip
from bloodjax.errors import UserError

# The label order of BloodMNIST and of the AN2DL challenge.
BLOOD_CELLS = (
    *("basophil", "eosinophil", "erythroblast", "ig"),
    *("lymphocyte", "monocyte", "neutrophil", "platelet"),
)

_MEDMNIST_SPLITS = ("train", "val", "test")


def read(path: pathlib.Path, size: int, class_names: Sequence[str]) -> Dataset:
    """Reads a challenge file (`images`, `labels`) or a MedMNIST file (`train_images`, ...).

    A challenge file may also hold `classes` (names in label order) and `groups` (one key a
    image). Without `classes`, its class names are `class_names`, else the eight `BLOOD_CELLS`.
    In a MedMNIST file they are `BLOOD_CELLS` for eight labels in a file called bloodmnist, else
    `class_names`, else `class_0` and so on.

    Raises:
      UserError: no such file, a damaged one, or keys, types, shapes or labels other than these.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped)
        if {"images", "labels"} & arrays.keys:
            return _read_challenge(arrays, size, class_names)
        splits = [s for s in _MEDMNIST_SPLITS if {f"{s}_images", f"{s}_labels"} & arrays.keys]
        if splits:
            return _read_medmnist(arrays, size, class_names, splits)
        raise UserError(
            f"{path}: holds {arrays.found}; expected images and labels (a challenge file) or "
            "train_images, train_labels and so on (a MedMNIST file)"
        )


def read_images(
    path: pathlib.Path, size: int
) -> tuple[UInt8[np.ndarray, "n {size} {size} 3"], tuple[str, ...]]:
    """The images of a challenge or MedMNIST file, labelled or not, and their names.

    Raises:
      UserError: no such file, a damaged one, or no images in it.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped)
        if "images" in arrays.keys:
            pictures = images.resize(arrays.pictures("images", grey=True), size)
            return pictures, tuple(map(str, range(len(pictures))))
        splits = [s for s in _MEDMNIST_SPLITS if f"{s}_images" in arrays.keys]
        if not splits:
            raise UserError(
                f"{path}: holds {arrays.found}; expected images, or train_images and so on"
            )
        parts = [images.resize(arrays.pictures(f"{s}_images", grey=True), size) for s in splits]
    names = (f"{s}/{i}" for s, part in zip(splits, parts, strict=True) for i in range(len(part)))
    return np.concatenate(parts), tuple(names)


def own_side(path: pathlib.Path) -> int:
    """The side in pixels of the images of a challenge or MedMNIST file.

    Raises:
      UserError: no such file, a damaged one, no images in it, or images that are not square.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped)
        splits = [f"{s}_images" for s in _MEDMNIST_SPLITS]
        key = next((k for k in ("images", *splits) if k in arrays.keys), "images")
        _, height, width, _ = arrays.pictures(key, grey=True).shape
    if height != width:
        raise UserError(f"{path}: {key} are of {height}x{width} pixels, expected square ones")
    return height


class _Arrays:
    """The arrays of an open npz, each checked as it is read; nothing is ever unpickled."""

    def __init__(self, path: pathlib.Path, zipped: zipfile.ZipFile):
        self.path = path
        self.keys = {n.removesuffix(".npy") for n in zipped.namelist() if n.endswith(".npy")}
        self.found = "the arrays " + ", ".join(sorted(self.keys)[:12]) if self.keys else "no arrays"
        self._zipped = zipped

    def array(self, key: str) -> np.ndarray:
        if key not in self.keys:
            raise UserError(f"{self.path}: holds {self.found}; expected {key} too")
        try:
            with self._zipped.open(key + ".npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except MemoryError as error:
            raise UserError(f"{self.path}: {key} does not fit into memory ({error})") from error
        except Exception as error:  # on a damaged header NumPy raises anything
            raise UserError(
                f"{self.path}: {key} cannot be read ({error}), expected a whole array of numbers "
                "or strings without pickled objects"
            ) from error

    def pictures(self, key: str, *, grey: bool) -> UInt8[np.ndarray, "n height width 3"]:
        """RGB images, where `grey` allows it from grey ones."""
        array = self.array(key)
        if grey and array.ndim == 3:
            array = np.repeat(array[..., None], 3, axis=-1)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            shapes = "(N, H, W, 3) or (N, H, W)" if grey else "(N, H, W, 3)"
            raise self._unlike(key, array, f"uint8 of shape {shapes}")
        if array.size == 0:
            raise self._unlike(key, array, "at least one image")
        return array

    def labels(self, key: str, n: int) -> Int32[np.ndarray, " {n}"]:
        """Labels of `n` images, of any whole-numbered type."""
        array = self.array(key)
        if array.shape not in ((n,), (n, 1)) or array.dtype.kind not in "iuf":
            expected = f"a whole number for each image, of shape ({n},) or ({n}, 1)"
            raise self._unlike(key, array, expected)
        array = array.reshape(n)
        # Written so that NaN, which compares as False, is wrong too.
        right = (array >= 0) & (array <= np.iinfo(np.int32).max) & (array == np.floor(array))
        if not right.all():
            i = int(np.argmin(right))
            raise UserError(
                f"{self.path}: {key}[{i}] is {array[i]}, expected a whole number from 0 up"
            )
        return array.astype(np.int32)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings, or of whole numbers read as such."""
        array = self.array(key)
        if array.ndim != 1 or array.dtype.kind not in "Uiu":
            raise self._unlike(key, array, "a list of strings")
        return tuple(array.astype(str).tolist())

    def _unlike(self, key: str, array: np.ndarray, expected: str) -> UserError:
        found = f"{array.dtype} of shape {array.shape}"
        return UserError(f"{self.path}: {key} is {found}, expected {expected}")


def _read_challenge(arrays: _Arrays, size: int, class_names: Sequence[str]) -> Dataset:
    pictures = arrays.pictures("images", grey=False)
    n = len(pictures)
    labels = arrays.labels("labels", n)
    classes = tuple(class_names) or BLOOD_CELLS
    if "classes" in arrays.keys:
        classes = arrays.names("classes")
        if len(set(classes)) < len(classes):
            raise UserError(f"{arrays.path}: classes names a class twice: {', '.join(classes)}")
    _check_range(arrays.path, "labels", labels, classes)
    groups = arrays.names("groups") if "groups" in arrays.keys else ("",) * n
    if len(groups) != n:
        raise UserError(f"{arrays.path}: groups has {len(groups)} entries, expected {n}")
    return Dataset(
        images=images.resize(pictures, size),
        labels=labels,
        names=tuple(map(str, range(n))),
        classes=classes,
        splits=("",) * n,
        groups=groups,
    )


def _read_medmnist(
    arrays: _Arrays, size: int, class_names: Sequence[str], splits: Sequence[str]
) -> Dataset:
    pictures, labels = {}, {}
    for split in splits:
        part = arrays.pictures(f"{split}_images", grey=True)
        pictures[split] = images.resize(part, size)
        labels[split] = arrays.labels(f"{split}_labels", len(part))
    every_label = np.concatenate(list(labels.values()))
    n = len(every_label)
    # Every class needs an image, so there are at most as many.
    classes = tuple(class_names) or tuple(
        f"class_{i}" for i in range(min(every_label.max() + 1, n))
    )
    if "bloodmnist" in arrays.path.name.lower() and every_label.max() + 1 == len(BLOOD_CELLS):
        classes = BLOOD_CELLS
    for split in splits:
        _check_range(arrays.path, f"{split}_labels", labels[split], classes)
    return Dataset(
        images=np.concatenate(list(pictures.values())),
        labels=every_label,
        names=tuple(f"{split}/{i}" for split in splits for i in range(len(labels[split]))),
        classes=classes,
        splits=tuple(split for split in splits for _ in labels[split]),
        groups=("",) * n,
    )


def _check_range(
    path: pathlib.Path, key: str, labels: Int32[np.ndarray, " n"], classes: Sequence[str]
) -> None:
    wrong = np.flatnonzero(labels >= len(classes))
    if len(wrong):
        i = wrong[0]
        shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UserError(
            f"{path}: {key}[{i}] is {labels[i]}, expected 0..{len(classes) - 1} ({shown}); "
            "other classes are named by config.data.classes=a,b,c"
        )
