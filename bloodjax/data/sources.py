"""Loads the dataset that a SPEC names.

FILE.npz        a challenge file or a MedMNIST file, distinguished by the names of their arrays
FOLDER, X.zip   <class>/<image> or <split>/<class>/<image>
FOLDER          ArrayRecord shards, as bloodjax.pack writes them
tfds:NAME[:VERSION]   a dataset that tensorflow_datasets has built on this machine
synthetic[:N]   N rendered images of blood cells, by default 2,400
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import array_record, folders, npz
from bloodjax.data.formats.archive import keep_open, open_archive, open_zip
from bloodjax.data.images import SUFFIXES, decode
from bloodjax.data.lazy import Images, take
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.data.reading import LeftOut, Reading
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError

DEFAULT_SYNTHETIC = 2400
_TFDS = "tfds:"


def load(
    spec: str,
    image_size: int,
    *,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    seed: int = 0,
    lazy: bool = False,
) -> Dataset:
    """Loads all images of a source, center-cropped and resized to `image_size`.

    Images of shards are always lazy (`lazy.LazyImages`). Images of a folder or zip are lazy if
    they would take more than a quarter of the host's memory.

    Args:
      spec: The SPEC of the source.
      image_size: Height and width of the images in pixels.
      options: How the images are read.
      class_names: Classes in label order, such as those of a trained model. The source may lack
        some of them, and must not contain others. By default the order is the source's own, and
        each class must have an image.
      seed: Random seed of synthetic images.
      lazy: Whether images of a folder or zip are always lazy.

    Raises:
      UserError: The source cannot be loaded; the message names it.
    """
    count = _synthetic_count(spec)
    if count is not None:
        dataset = render.render_dataset(count, image_size, seed=seed)
        dataset = dataclasses.replace(dataset, reading=Reading(layout="rendered cells"))
    else:
        path = _local_path(spec)
        if path.is_file() and path.suffix.lower() == ".npz":
            dataset = npz.read_dataset(path, image_size, class_names, options)
        elif array_record.is_shards(path):
            dataset = array_record.read_dataset(path, image_size, options)
        else:
            dataset = folders.read_dataset(path, image_size, options, lazy=lazy)
    reading = dataclasses.replace(dataset.reading, spec=spec)
    dataset = dataclasses.replace(dataset, reading=reading)
    if class_names:
        return _in_label_order(spec, dataset, class_names)
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    empty = [name for name, n in zip(dataset.classes, counts, strict=True) if n == 0]
    if empty:
        raise UserError(
            f"{spec}: no image of {', '.join(empty)}, expected at least one of each class "
            f"({', '.join(dataset.classes)})"
        )
    return dataset


def load_images(
    path: str, image_size: int, *, options: ReadOptions = DEFAULTS, seed: int = 0
) -> Dataset:
    """Loads images without labels, to classify them.

    Args:
      path: An image, a folder or zip with images at any depth, an npz with `images`, or any
        other SPEC.
      image_size: Height and width of the images in pixels.
      options: How the images are read.
      seed: Random seed of synthetic images.

    Returns:
      The images and their names; there are no class names, and all labels are 0.

    Raises:
      UserError: The source cannot be loaded; the message names it.
    """
    is_shards = path.startswith(_TFDS) or array_record.is_shards(
        pathlib.Path(os.path.expanduser(path))
    )
    if is_shards or _synthetic_count(path) is not None:
        dataset = load(path, image_size, options=options, seed=seed)
        return _unlabelled(dataset.images, dataset.names, dataset.reading)
    if path.lower().endswith(SUFFIXES) and os.path.isfile(path):
        try:
            image = decode(pathlib.Path(path).read_bytes(), image_size)
        except ValueError as error:
            raise UserError(f"{path}: is not a readable image ({error})") from error
        return _unlabelled(image[None], (pathlib.Path(path).name,), Reading(path, "one image"))
    source = _local_path(path)
    if source.suffix.lower() == ".npz":
        images, names = npz.read_images(source, image_size, options)
        return _unlabelled(images, names, Reading(path, "npz of images"))
    archive = keep_open(source)
    names = tuple(n for n in archive.files if n.lower().endswith(SUFFIXES))
    images, readable = folders.read_images(source, archive, names, image_size, options)
    if not readable.any():
        raise UserError(f"{path}: contains no readable images")
    reading = Reading(path, "all images at any depth")
    if readable.all():
        return _unlabelled(images, names, reading)
    kept = np.flatnonzero(readable)
    reading = reading.with_left_out(LeftOut("unreadable", "", len(names) - len(kept)))
    return _unlabelled(take(images, kept), tuple(names[i] for i in kept), reading)


def _unlabelled(images: Images, names: tuple[str, ...], reading: Reading) -> Dataset:
    n = len(names)
    blank = ("",) * n
    return Dataset(images, np.zeros(n, np.int32), names, (), blank, blank, reading)


def native_size(spec: str) -> int | None:
    """Height and width in pixels of the images of a source that stores pixels; None for files.

    Raises:
      UserError: The source is missing or damaged, or its images are not square.
    """
    path = _local_path(spec)
    if array_record.is_shards(path):
        return array_record.native_size(path)
    return npz.native_size(path) if path.is_file() and path.suffix.lower() == ".npz" else None


def fingerprint(spec: str) -> str:
    """A short text that changes when the source changes; computing it reads no images.

    It covers the size and checksum of every member of an npz or zip, the path and size of every
    file in a folder, and the number of synthetic images. See `array_record.fingerprint` for shards.

    Raises:
      UserError: The source is missing or damaged.
    """
    count = _synthetic_count(spec)
    if count is not None:
        return f"synthetic:{count}"
    path = _local_path(spec)
    if array_record.is_shards(path):
        return array_record.fingerprint(path)
    if path.is_dir():
        with open_archive(path) as archive:
            entries = [(name, (path / name).lstat().st_size) for name in archive.files]
    else:
        with open_zip(path) as zipped:
            entries = sorted((m.filename, m.file_size, m.CRC) for m in zipped.infolist())
    return "sha256:" + hashlib.sha256(repr(entries).encode()).hexdigest()


def _synthetic_count(spec: str) -> int | None:
    """N of `synthetic[:N]`; None for any other SPEC."""
    kind, colon, count = spec.partition(":")
    if kind != "synthetic":
        return None
    if not colon:
        return DEFAULT_SYNTHETIC
    if not re.fullmatch("0*[1-9][0-9]*", count):
        raise UserError(f"{spec}: {count!r} images, expected synthetic:N with N of 1 or more")
    return int(count)


def _local_path(spec: str) -> pathlib.Path:
    if spec.startswith(_TFDS):
        from bloodjax.data.formats import tfds  # slow to import, and most runs do not need it

        return tfds.locate(spec)
    if re.match(r"[a-z0-9]+://", spec):
        raise UserError(f"{spec}: this version reads local files only, expected a path")
    path = pathlib.Path(os.path.expanduser(spec))  # pathlib's expanduser raises without a home
    if not path.exists():
        raise UserError(f"{spec}: no such file or folder")
    if not path.is_dir() and path.suffix.lower() not in (".npz", ".zip"):
        raise UserError(f"{spec}: neither npz nor zip, expected FILE.npz, a .zip or a folder")
    return path


def _in_label_order(spec: str, dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    unknown = sorted(set(dataset.classes) - set(class_names))
    if unknown:
        raise UserError(
            f"{spec}: contains the class {unknown[0]}, expected only {', '.join(class_names)}"
        )
    new_label = np.array([class_names.index(name) for name in dataset.classes], np.int32)
    return dataclasses.replace(
        dataset, labels=new_label[dataset.labels], classes=tuple(class_names)
    )
