"""Challenge and MedMNIST files, which store images and labels as arrays in one npz."""

from __future__ import annotations

import collections
import dataclasses
import logging
import pathlib
import sys
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from bloodjax.data import arrays as arrays_lib
from bloodjax.data import bit_depth
from bloodjax.data.dataset import Dataset
from bloodjax.data.facts import MAX_ASPECT, Tally
from bloodjax.data.formats import groups as groups_lib
from bloodjax.data.formats import labels as labels_lib
from bloodjax.data.formats import medmnist
from bloodjax.data.formats.archive import open_zip
from bloodjax.data.formats.labels import Labels
from bloodjax.data.formats.medmnist import BLOOD_CELLS
from bloodjax.data.images import resize
from bloodjax.data.names import numbered
from bloodjax.data.options import AUTO, DEFAULTS, MULTI_LABEL, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.errors import UserError

_MEDMNIST_SPLITS = ("train", "val", "test")

_log = logging.getLogger(__name__)


def read_dataset(
    path: pathlib.Path,
    size: int,
    class_names: Sequence[str],
    options: ReadOptions = DEFAULTS,
    *,
    positional: bool = True,
) -> Dataset:
    """Reads a challenge file (`images`, `labels`) or a MedMNIST file (`train_images`, ...).

    Both may also contain `classes` (names in label order), and `groups` or `train_groups` and so on
    (one key per image). The class names are those in `classes`, or those of text labels. Otherwise
    they are `class_names`. If these are empty, they are those of the MedMNIST set that the file has
    the name of; the eight `BLOOD_CELLS` for a challenge file and for a MedMNIST file of eight
    labels with colour images; and class_0 and so on for any other.

    An image can have several labels in the MedMNIST set that is so, and in any file if
    `options.task` says so.

    Args:
      path: The npz file.
      size: Height and width in pixels to resize to.
      class_names: Class names in label order, or empty.
      options: How the images are read.
      positional: Whether labels that are numbers are positions in `class_names`, see `labels.read`.

    Raises:
      UserError: The file is missing or damaged, or its keys, types, shapes or labels are others.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, size, options)
        keys, splits = arrays.kind()
        images, tally = arrays.images([f"{key}images" for key in keys])
        found = _read_labels(arrays, keys, class_names, positional)
        counts = dict(zip(keys, map(len, images), strict=True))
        for key, n in counts.items():
            if len(found.by_key[f"{key}labels"]) != n:
                shape = arrays.array(f"{key}labels").shape
                raise UserError(
                    f"{path}: {key}labels has the shape {shape}, expected labels of shape ({n},) "
                    f"or ({n}, 1)"
                )
        groups, group_facts = arrays.groups(counts)
        reading = Reading(
            layout="npz of images and labels" if not splits else "npz of splits, as MedMNIST's",
            details=(*found.details, *group_facts),
            first_label=found.first,
        )
        names = [f"{split}/" for split in splits] or [""]
        return Dataset(
            images=np.concatenate(images) if len(images) > 1 else images[0],
            labels=np.concatenate([found.by_key[f"{key}labels"] for key in keys]),
            names=tuple(
                f"{name}{i}"
                for name, n in zip(names, counts.values(), strict=True)
                for i in range(n)
            ),
            classes=found.classes,
            splits=tuple(
                split
                for split, n in zip(splits or ("",), counts.values(), strict=True)
                for _ in range(n)
            ),
            groups=groups,
            reading=reading.with_tally(tally, options),
        )


def count_labels(
    path: pathlib.Path, class_names: Sequence[str] = ()
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number of labels by split, and the class names, without reading the images.

    Raises:
      UserError: The file is missing or damaged, or its labels are not as `read_dataset` expects.
    """
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, 1, DEFAULTS)
        keys, splits = arrays.kind()
        found = _read_labels(arrays, keys, class_names, positional=True)
    counts = [len(found.by_key[f"{key}labels"]) for key in keys]
    return dict(zip(splits or ("",), counts, strict=True)), found.classes


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
    keys, parts, tally = _read_parts(path, size, options)
    if keys == ["images"]:
        return parts[0], tuple(map(str, range(len(parts[0])))), tally
    splits = [key.removesuffix("_images") for key in keys]
    names = (f"{s}/{i}" for s, part in zip(splits, parts, strict=True) for i in range(len(part)))
    return np.concatenate(parts), tuple(names), tally


def read_groups(path: pathlib.Path, names: Sequence[str]) -> tuple[str, ...]:
    """The group of each image that `read_images` returns, "" for an image without one.

    Args:
      path: The npz file.
      names: Names of the images, from `read_images`.

    Raises:
      UserError: The file is missing or damaged, or the groups are not one key for each image.
    """
    splits = (name.rpartition("/")[0] for name in names)
    counts = collections.Counter(f"{split}_" if split else "" for split in splits)
    with open_zip(path) as zipped:
        return _Arrays(path, zipped, 1, DEFAULTS).groups(counts)[0]


def read_own_size(
    path: pathlib.Path, options: ReadOptions = DEFAULTS
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The images that `read_images` returns, at the size that they are stored with.

    Raises:
      UserError: As for `read_images`.
    """
    _, parts, _ = _read_parts(path, None, options)
    return [image for part in parts for image in part]


def _read_parts(
    path: pathlib.Path, size: int | None, options: ReadOptions
) -> tuple[list[str], list[UInt8[np.ndarray, "_ _ _ 3"]], Tally]:
    """Keys and images of the arrays of a file without labels, and the images' tally."""
    with open_zip(path) as zipped:
        arrays = _Arrays(path, zipped, size, options)
        keys = [f"{s}_images" for s in _MEDMNIST_SPLITS if f"{s}_images" in arrays.keys]
        if "images" in arrays.keys:
            keys = ["images"]
        if not keys:
            raise UserError(
                f"{path}: contains {arrays.found}; expected images, or train_images and so on"
            )
        return keys, *arrays.images(keys)


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
        self, path: pathlib.Path, zipped: zipfile.ZipFile, size: int | None, options: ReadOptions
    ):
        """Reads arrays of an open file; `size` is None for images of the size that is stored."""
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
                array = np.lib.format.read_array(file, allow_pickle=False)
            _check_text(array)
            return array
        except MemoryError as error:
            raise UserError(f"{self.path}: {key} does not fit into memory ({error})") from error
        except Exception as error:  # NumPy raises any type for a damaged header
            raise UserError(
                f"{self.path}: {key} cannot be read ({error}), expected an array of numbers "
                "or strings without pickled objects; for strings, save array.astype(str)"
            ) from error

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self._size is None else resize(pixels, self._size, self.options.fit)

    def images(self, keys: Sequence[str]) -> tuple[list[UInt8[np.ndarray, "_ _ _ 3"]], Tally]:
        """The images of several arrays as RGB, all with one scale, and their tally."""
        ranges: list[bit_depth.Range] = []
        deep = transparent = elongated = 0
        # The first pass finds the scale. Arrays of 8 bits, which have none, are kept from it.
        kept: dict[str, np.ndarray] = {}
        for key in keys:
            pixels = self.pixels(key)
            if pixels.dtype == np.uint8:
                pixels, n = self._rgb(key, pixels)
                transparent += n
                kept[key] = self._resized(pixels)
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
                kept[key] = self._resized(pixels)
        largest = max((one.largest for one in ranges), default=0.0)
        tally = Tally(
            transparent=transparent,
            elongated=elongated,
            deep=deep,
            largest=largest,
            typical=largest,
            scale=scale,
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

    def _rgb(self, key: str, pixels: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            return arrays_lib.to_rgb(pixels)
        except ValueError as error:
            raise UserError(f"{self.path}: {key}: {error}") from error

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

    def kind(self) -> tuple[list[str], list[str]]:
        """Prefixes of the keys: [""] for a challenge file; and the splits of a MedMNIST file.

        Raises:
          UserError: It is neither, or both.
        """
        splits = [s for s in _MEDMNIST_SPLITS if {f"{s}_images", f"{s}_labels"} & self.keys]
        if {"images", "labels"} & self.keys:
            if splits:
                raise UserError(
                    f"{self.path}: contains {self.found}; expected either images and labels, or "
                    f"{splits[0]}_images and {splits[0]}_labels, but not both"
                )
            return [""], []
        if splits:
            return [f"{split}_" for split in splits], splits
        raise UserError(
            f"{self.path}: contains {self.found}; expected images and labels (a challenge file) or "
            "train_images, train_labels and so on (a MedMNIST file)"
        )

    def is_grey(self, key: str) -> bool:
        """Whether the images `key` have no channels, by the header of the array alone."""
        try:
            with self._zipped.open(key + ".npy") as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    return len(np.lib.format.read_array_header_1_0(file)[0]) == 3
                return len(np.lib.format.read_array_header_2_0(file)[0]) == 3
        except Exception:  # NumPy raises any type; reading the array says what is wrong
            return self.array(key).ndim == 3

    def classes(self) -> tuple[str, ...] | None:
        """The file's own class names; None if it has none."""
        if "classes" not in self.keys:
            return None
        array = self.array("classes")
        if array.ndim != 1 or array.dtype.kind not in "USiu":
            raise self._error("classes", array, "a list of strings")
        if array.dtype.kind in "US":
            array = labels_lib.texts(f"{self.path}: classes", array)
        found = tuple(array.astype(str).tolist())
        if len(set(found)) < len(found):
            raise UserError(f"{self.path}: classes names a class twice: {', '.join(found)}")
        return found

    def groups(self, counts: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Group of each image, and facts about the groups.

        Args:
          counts: Prefix of the keys of each split -> its number of images.
        """
        keys = [f"{prefix}groups" for prefix in counts]
        read = {f"{prefix}{kind}" for prefix in counts for kind in ("images", "labels", "groups")}
        others = sorted(self.keys - read - {"classes"})
        unused = (f"unused arrays: {', '.join(others[:6])}",) if others else ()
        n = sum(counts.values())
        if not self.keys.intersection(keys):
            meant = [key for key in others if groups_lib.tables([f"{key}.csv"])]
            beside = [groups_lib.TABLE] if groups_lib.is_beside(self.path) else []
            for name in [f"the array {key}" for key in meant] + [
                f"{name} beside it" for name in beside
            ]:
                _log.warning(
                    "%s: %s is not read; the keys of images that belong together, such as those of "
                    "a patient, are an array %s",
                    *(self.path, name, " and ".join(keys)),
                )
            return ("",) * n, unused
        cells = [
            cell
            for key, count in zip(keys, counts.values(), strict=True)
            for cell in (self._groups(key, count) if key in self.keys else ("",) * count)
        ]
        found, facts = groups_lib.of_column(cells)
        without = found.count("")
        if without:
            _log.warning(
                "%s: no key in %s for %d of %d images; they may be on another side of a split "
                "than images of the same patient or slide",
                *(self.path, ", ".join(keys), without, n),
            )
        return tuple(found), (*facts, *unused)

    def _groups(self, key: str, n: int) -> list[str]:
        array = self.array(key)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or array.dtype.kind not in "USiuf":
            raise self._error(key, array, "a list of strings or of whole numbers")
        if len(array) != n:
            raise UserError(f"{self.path}: {key} has {len(array)} entries, expected {n}")
        if array.dtype.kind == "S":
            try:
                array = np.char.decode(array, "utf-8")
            except UnicodeError as error:
                raise self._error(key, array, "bytes of UTF-8") from error
        return list(map(str, array.tolist()))

    def _error(self, key: str, array: np.ndarray, expected: str) -> UserError:
        found = f"{array.dtype} of shape {array.shape}"
        return UserError(f"{self.path}: {key} is {found}, expected {expected}")


def _check_text(array: np.ndarray) -> None:
    """Raises ValueError if an array of text has numbers that are no characters."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        number = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
        if np.ascontiguousarray(array).view(number).max() > sys.maxunicode:
            raise ValueError("its text is damaged")


def _read_labels(
    arrays: _Arrays, keys: Sequence[str], class_names: Sequence[str], positional: bool
) -> Labels:
    """The labels of all splits, and what they stand for."""
    stored = {f"{key}labels": arrays.array(f"{key}labels") for key in keys}
    own = arrays.classes()
    known = medmnist.find(arrays.path) if keys != [""] and own is None else None
    if arrays.options.task == MULTI_LABEL or (
        arrays.options.task == AUTO
        and known is not None
        and known.is_multi_label
        and all(array.shape[1:] == (len(known.classes),) for array in stored.values())
    ):
        default = known.classes if known else ()
        return labels_lib.read_several(arrays.path, stored, own, class_names, default)
    default, detail = _default_names(arrays, keys, stored, class_names, known)
    found = labels_lib.read(
        arrays.path,
        stored,
        own,
        class_names,
        default,
        positional=positional,
        first=arrays.options.first_label,
    )
    if own is None and not class_names and detail and found.classes == default:
        return dataclasses.replace(found, details=(*found.details, detail))
    return found


def _default_names(
    arrays: _Arrays,
    keys: Sequence[str],
    stored: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    known: medmnist.MedMNISTSet | None,
) -> tuple[tuple[str, ...], str]:
    """Class names of a file that states none, in label order, and a fact about them; () for none.

    Args:
      arrays: The file.
      keys: Prefixes of its keys.
      stored: Its labels.
      class_names: Class names that the user or a run states.
      known: The set of MedMNIST that the file is by its name.
    """
    blood = "without names: BloodMNIST's eight classes"
    if keys == [""]:
        return BLOOD_CELLS, blood
    first = next((f"{key}images" for key in keys if f"{key}images" in arrays.keys), None)
    is_grey = first is not None and arrays.is_grey(first)
    numbers = labels_lib.read(arrays.path, stored, None, (), (), positional=True).classes
    if known and first and is_grey == known.is_grey and numbers == numbered(len(known.classes)):
        names = known.classes
        return (
            names,
            blood if names == BLOOD_CELLS else "class names of MedMNIST, by the file's name",
        )
    is_blood = tuple(class_names) == BLOOD_CELLS or numbers == numbered(len(BLOOD_CELLS))
    return (BLOOD_CELLS, blood) if is_blood and first and not is_grey else ((), "")
