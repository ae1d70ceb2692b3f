"""Challenge and MedMNIST files, which store images and labels as arrays in one npz."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from bloodjax.data.dataset import Dataset
from bloodjax.data.facts import Tally
from bloodjax.data.formats import labels as labels_lib
from bloodjax.data.formats import medmnist
from bloodjax.data.formats.archive import open_zip
from bloodjax.data.formats.labels import Labels
from bloodjax.data.formats.medmnist import BLOOD_CELLS
from bloodjax.data.formats.npz_arrays import SPLITS, Arrays
from bloodjax.data.names import numbered
from bloodjax.data.options import AUTO, DEFAULTS, MULTI_LABEL, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.errors import UserError


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
        arrays = Arrays(path, zipped, size, options)
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
        arrays = Arrays(path, zipped, 1, DEFAULTS)
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
        return Arrays(path, zipped, 1, DEFAULTS).groups(counts)[0]


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
        arrays = Arrays(path, zipped, size, options)
        keys = [f"{s}_images" for s in SPLITS if f"{s}_images" in arrays.keys]
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
        arrays = Arrays(path, zipped, 1, DEFAULTS)
        splits = [f"{s}_images" for s in SPLITS]
        key = next((k for k in ("images", *splits) if k in arrays.keys), "images")
        _, height, width, _ = arrays.pixels(key).shape
    if height != width:
        raise UserError(f"{path}: {key} has {height}x{width} pixels, expected square ones")
    return height


def _read_labels(
    arrays: Arrays, keys: Sequence[str], class_names: Sequence[str], positional: bool
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
    arrays: Arrays,
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
