"""Challenge and MedMNIST files, which store images and labels as arrays in one npz."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from bloodjax.data import arrays as arrays_lib
from bloodjax.data import bit_depth
from bloodjax.data.dataset import Dataset
from bloodjax.data.facts import MAX_ASPECT, Tally
from bloodjax.data.formats.archive import open_zip
from bloodjax.data.images import resize
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.errors import UserError

# The label order of BloodMNIST and of the AN2DL challenge.
BLOOD_CELLS = (
    *("basophil", "eosinophil", "erythroblast", "ig"),
    *("lymphocyte", "monocyte", "neutrophil", "platelet"),
)

_MEDMNIST_SPLITS = ("train", "val", "test")


def read_dataset(
    path: pathlib.Path,
    size: int,
    class_names: Sequence[str],
    options: ReadOptions = DEFAULTS,
) -> Dataset:
    """Reads a challenge file (`images`, `labels`) or a MedMNIST file (`train_images`, ...).

    A challenge file may also contain `classes` (names in label order) and `groups` (one key per
    image). Without `classes`, its class names are `class_names` or, if these are empty, the eight
    `BLOOD_CELLS`. The class names of a MedMNIST file are `BLOOD_CELLS` if its name contains
    bloodmnist and it has eight labels, else `class_names`, else `class_0` and so on.

    Args:
      path: The npz file.
      size: Height and width in pixels to resize to.
      class_names: Class names in label order, or empty.
      options: How the images are read.

    Raises:
      UserError: The file is missing or damaged, or its keys, types, shapes or labels are others.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, size, options)
        if {"images", "labels"} & arrays.keys:
            return _read_challenge(arrays, class_names)
        splits = [s for s in _MEDMNIST_SPLITS if {f"{s}_images", f"{s}_labels"} & arrays.keys]
        if splits:
            return _read_medmnist(arrays, class_names, splits)
        raise UserError(
            f"{path}: contains {arrays.found}; expected images and labels (a challenge file) or "
            "train_images, train_labels and so on (a MedMNIST file)"
        )


def read_images(
    path: pathlib.Path, size: int, options: ReadOptions = DEFAULTS
) -> tuple[UInt8[np.ndarray, "n {size} {size} 3"], tuple[str, ...], Tally]:
    """Reads the images of a challenge or MedMNIST file without labels.

    Args:
      path: The npz file.
      size: Height and width in pixels to resize to.
      options: How the images are read.

    Returns:
      The images, their names, and what had to be decided about the images.

    Raises:
      UserError: The file is missing or damaged, or contains no images.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, size, options)
        if "images" in arrays.keys:
            (images,), tally = arrays.images(["images"])
            return images, tuple(map(str, range(len(images)))), tally
        splits = [s for s in _MEDMNIST_SPLITS if f"{s}_images" in arrays.keys]
        if not splits:
            raise UserError(
                f"{path}: contains {arrays.found}; expected images, or train_images and so on"
            )
        parts, tally = arrays.images([f"{s}_images" for s in splits])
    names = (f"{s}/{i}" for s, part in zip(splits, parts, strict=True) for i in range(len(part)))
    return np.concatenate(parts), tuple(names), tally


def native_size(path: pathlib.Path) -> int:
    """Height and width in pixels of the images of a challenge or MedMNIST file.

    Raises:
      UserError: The file is missing or damaged, or has no images, or its images are not square.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, 1, DEFAULTS)
        splits = [f"{s}_images" for s in _MEDMNIST_SPLITS]
        key = next((k for k in ("images", *splits) if k in arrays.keys), "images")
        _, height, width, _ = arrays.pixels(key).shape
    if height != width:
        raise UserError(f"{path}: {key} has {height}x{width} pixels, expected square ones")
    return height


class _Arrays:
    """Reads and checks the arrays of an open npz; never unpickles anything."""

    def __init__(
        self, path: pathlib.Path, zipped: zipfile.ZipFile, size: int, options: ReadOptions
    ):
        self.path, self._size, self.options = path, size, options
        self.keys = {n.removesuffix(".npy") for n in zipped.namelist() if n.endswith(".npy")}
        self.found = "the arrays " + ", ".join(sorted(self.keys)[:12]) if self.keys else "no arrays"
        self._zipped = zipped

    def require(self, *keys: str) -> None:
        """Raises UserError for the first of `keys` that the file lacks."""
        for key in keys:
            if key not in self.keys:
                raise UserError(f"{self.path}: contains {self.found}; expected {key} too")

    def array(self, key: str) -> np.ndarray:
        self.require(key)
        try:
            with self._zipped.open(key + ".npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except MemoryError as error:
            raise UserError(f"{self.path}: {key} does not fit into memory ({error})") from error
        except Exception as error:  # NumPy raises any type for a damaged header
            raise UserError(
                f"{self.path}: {key} cannot be read ({error}), expected an array of numbers "
                "or strings without pickled objects"
            ) from error

    def images(self, keys: Sequence[str]) -> tuple[list[UInt8[np.ndarray, "_ size size 3"]], Tally]:
        """The images of several arrays as RGB squares, all with one scale, and their tally."""
        ranges: list[bit_depth.Range] = []
        deep = transparent = elongated = 0
        # The first pass finds the scale. Arrays of 8 bits, which have none, are kept from it.
        kept: dict[str, np.ndarray] = {}
        for key in keys:
            pixels = self.pixels(key)
            if pixels.dtype == np.uint8:
                pixels, n = arrays_lib.to_rgb(pixels)
                transparent += n
                kept[key] = resize(pixels, self._size, self.options.fit)
            else:
                ranges.append(self._range(key, pixels))
                deep += len(pixels)
            height, width = pixels.shape[1:3]
            if max(height, width) > MAX_ASPECT * min(height, width):
                elongated += len(pixels)
        scale = self._scale(ranges) if ranges else ""
        for key in keys:
            if key not in kept:
                pixels = self._scaled(key, scale)
                kept[key] = resize(pixels, self._size, self.options.fit)
        largest = max((one.largest for one in ranges), default=0.0)
        tally = Tally(
            transparent=transparent, elongated=elongated, deep=deep, largest=largest, scale=scale
        )
        return [kept[key] for key in keys], tally

    def pixels(self, key: str) -> Shaped[np.ndarray, "n height width channels"]:
        """Images as they are stored; grey ones have one channel."""
        array = self.array(key)
        expected = (
            "images of uint8, uint16 or floats of 0..1, and of shape (N, H, W, 3) or (N, H, W)"
        )
        if array.dtype.kind not in "iuf":
            raise self._error(key, array, expected)
        try:
            pixels = arrays_lib.with_channels(array)
        except ValueError as error:
            raise self._error(key, array, f"{expected}, but {error}") from None
        if array.size == 0:
            raise self._error(key, array, "at least one image")
        if pixels.shape[-1] == 4 and array.dtype != np.uint8:
            raise self._error(key, array, f"uint8 with a channel of opacity, or {expected}")
        return pixels

    def _range(self, key: str, pixels: np.ndarray) -> bit_depth.Range:
        try:
            return bit_depth.measure(pixels)
        except ValueError as error:
            raise UserError(f"{self.path}: {key} has {error}") from error

    def _scale(self, ranges: Sequence[bit_depth.Range]) -> str:
        if self.options.bits != AUTO:
            return self.options.bits
        try:
            return bit_depth.choose(ranges)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _scaled(self, key: str, scale: str) -> UInt8[np.ndarray, "n height width 3"]:
        pixels = self.pixels(key)
        try:
            scaled = bit_depth.to_uint8(pixels, self._range(key, pixels), scale)
        except ValueError as error:
            raise UserError(f"{self.path}: {key} has {error}") from error
        return arrays_lib.to_rgb(scaled)[0]

    def labels(self, key: str, n: int) -> Int32[np.ndarray, " {n}"]:
        """Labels of `n` images, stored as any type of integer or as floats with integer values."""
        array = self.array(key)
        if array.shape not in ((n,), (n, 1)) or array.dtype.kind not in "iuf":
            expected = f"an integer for each image, of shape ({n},) or ({n}, 1)"
            raise self._error(key, array, expected)
        array = array.reshape(n)
        # NaN compares as False, so it is rejected too.
        valid = (array >= 0) & (array <= np.iinfo(np.int32).max) & (array == np.floor(array))
        if not valid.all():
            i = int(np.argmin(valid))
            raise UserError(
                f"{self.path}: {key}[{i}] is {array[i]}, expected an integer of at least 0"
            )
        return array.astype(np.int32)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings, or of integers that are converted to strings."""
        array = self.array(key)
        if array.ndim != 1 or array.dtype.kind not in "Uiu":
            raise self._error(key, array, "a list of strings")
        return tuple(array.astype(str).tolist())

    def _error(self, key: str, array: np.ndarray, expected: str) -> UserError:
        found = f"{array.dtype} of shape {array.shape}"
        return UserError(f"{self.path}: {key} is {found}, expected {expected}")


def _read_challenge(arrays: _Arrays, class_names: Sequence[str]) -> Dataset:
    (images,), tally = arrays.images(["images"])
    n = len(images)
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
        images=images,
        labels=labels,
        names=tuple(map(str, range(n))),
        classes=classes,
        splits=("",) * n,
        groups=groups,
        reading=Reading().with_tally(tally, arrays.options),
    )


def _read_medmnist(arrays: _Arrays, class_names: Sequence[str], splits: Sequence[str]) -> Dataset:
    arrays.require(*(f"{split}_{kind}" for split in splits for kind in ("images", "labels")))
    images, tally = arrays.images([f"{split}_images" for split in splits])
    labels = {
        split: arrays.labels(f"{split}_labels", len(part))
        for split, part in zip(splits, images, strict=True)
    }
    every_label = np.concatenate(list(labels.values()))
    n = len(every_label)
    # Every class must have an image, so there are at most `n` classes.
    classes = tuple(class_names) or tuple(
        f"class_{i}" for i in range(min(every_label.max() + 1, n))
    )
    if "bloodmnist" in arrays.path.name.lower() and every_label.max() + 1 == len(BLOOD_CELLS):
        classes = BLOOD_CELLS
    for split in splits:
        _check_range(arrays.path, f"{split}_labels", labels[split], classes)
    return Dataset(
        images=np.concatenate(images),
        labels=every_label,
        names=tuple(f"{split}/{i}" for split in splits for i in range(len(labels[split]))),
        classes=classes,
        splits=tuple(split for split in splits for _ in labels[split]),
        groups=("",) * n,
        reading=Reading().with_tally(tally, arrays.options),
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
            "name other classes with config.data.classes=a,b,c, or --classes=a,b,c in audit and pack"
        )
