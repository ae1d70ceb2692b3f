"""From a SPEC, the one grammar for data, to a Dataset.

FILE.npz        a challenge file or a MedMNIST file, told apart by their arrays
FOLDER, X.zip   <class>/<image> or <split>/<class>/<image>
FOLDER          of ArrayRecord shards, which bloodjax.pack writes
tfds:NAME[:VERSION]   a set that tensorflow_datasets has built on this machine
synthetic[:N]   N rendered cells
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bloodjax.data import images, lazy
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import array_record, folders, npz
from bloodjax.data.formats.archive import keep_open, open_archive, open_zip
from bloodjax.data.lazy import Images
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError

DEFAULT_SYNTHETIC = 2400
_TFDS = "tfds:"


def load(
    spec: str,
    image_size: int,
    *,
    bad_images: Literal["fail", "skip"] = "fail",
    class_names: Sequence[str] = (),
    seed: int = 0,
    unread: bool = False,
) -> Dataset:
    """All images of a source, centre-cropped and resized to `image_size` pixels a side.

    Those of shards are read when they are asked for (`lazy.LazyImages`), and so are those of a
    folder or zip that would take more than a quarter of the host's memory.

    Args:
      spec: where the images are.
      image_size: side of the images that come out.
      bad_images: whether a file that is no readable image ends the reading or is left out with a
        warning. Of shards it is always an error.
      class_names: the classes in label order, such as a trained model's. The source may then lack
        some of them, and must hold no others. Without it the source's own order counts, and each
        class must have an image.
      seed: of the synthetic cells.
      unread: read a folder's or zip's images when they are asked for, too, whatever they take.

    Raises:
      UserError: whatever is wrong with the source, in one line that names it.
    """
    count = _synthetic_count(spec)
    if count is not None:
        dataset = render.render(count, image_size, seed=seed)
    else:
        path = _local_path(spec)
        if path.is_file() and path.suffix.lower() == ".npz":
            dataset = npz.read(path, image_size, class_names)
        elif array_record.is_set(path):
            dataset = array_record.read(path, image_size)
        else:
            dataset = folders.read(path, image_size, bad_images, unread=unread)
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
    path: str, image_size: int, *, bad_images: Literal["fail", "skip"] = "fail", seed: int = 0
) -> tuple[Images, tuple[str, ...]]:
    """Reads images to classify, and their names; labels are not asked for.

    Args:
      path: an image, a folder or zip with images at any depth, an npz with `images`, or any
        other SPEC.
      image_size: side of the images that come out.
      bad_images: as for `load`.
      seed: of the synthetic cells.

    Raises:
      UserError: whatever is wrong with the source, in one line that names it.
    """
    is_shards = path.startswith(_TFDS) or array_record.is_set(
        pathlib.Path(os.path.expanduser(path))
    )
    if is_shards or _synthetic_count(path) is not None:
        dataset = load(path, image_size, seed=seed)
        return dataset.images, dataset.names
    if path.lower().endswith(images.SUFFIXES) and os.path.isfile(path):
        try:
            image = images.decode(pathlib.Path(path).read_bytes(), image_size)
        except ValueError as error:
            raise UserError(f"{path}: is not a readable image ({error})") from error
        return image[None], (pathlib.Path(path).name,)
    source = _local_path(path)
    if source.suffix.lower() == ".npz":
        return npz.read_images(source, image_size)
    archive = keep_open(source)
    names = tuple(n for n in archive.files if n.lower().endswith(images.SUFFIXES))
    pictures, readable = folders.images_of(source, archive, names, image_size, bad_images)
    if not readable.any():
        raise UserError(f"{path}: holds no readable images")
    if readable.all():
        return pictures, names
    left = np.flatnonzero(readable)
    return lazy.take(pictures, left), tuple(names[i] for i in left)


def own_side(spec: str) -> int | None:
    """The side in pixels of a source's images, where it keeps them as pixels of one size.

    Raises:
      UserError: the source is missing or damaged, or its images are not square.
    """
    path = _local_path(spec)
    if array_record.is_set(path):
        return array_record.own_side(path)
    return npz.own_side(path) if path.is_file() and path.suffix.lower() == ".npz" else None


def fingerprint(spec: str) -> str:
    """A short text that stays the same as long as the source does; reads no images.

    For an npz or zip it covers the size and checksum of every file inside, for a folder the path
    and size of every file, for shards see `packed.fingerprint`, for synthetic cells their number.

    Raises:
      UserError: the source is missing or damaged.
    """
    count = _synthetic_count(spec)
    if count is not None:
        return f"synthetic:{count}"
    path = _local_path(spec)
    if array_record.is_set(path):
        return array_record.fingerprint(path)
    if path.is_dir():
        with open_archive(path) as archive:
            entries = [(name, (path / name).lstat().st_size) for name in archive.files]
    else:
        with open_zip(path) as zipped:
            entries = sorted((m.filename, m.file_size, m.CRC) for m in zipped.infolist())
    return "sha256:" + hashlib.sha256(repr(entries).encode()).hexdigest()


def _synthetic_count(spec: str) -> int | None:
    """N of `synthetic[:N]`, None for any other spec."""
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
        from bloodjax.data.formats import tfds  # takes its time, and most runs do without

        return tfds.locate(spec)
    if re.match(r"[a-z0-9]+://", spec):
        raise UserError(f"{spec}: this version reads local files only, expected a path")
    path = pathlib.Path(os.path.expanduser(spec))  # unlike pathlib's, never raises
    if not path.exists():
        raise UserError(f"{spec}: no such file or folder")
    if not path.is_dir() and path.suffix.lower() not in (".npz", ".zip"):
        raise UserError(f"{spec}: neither npz nor zip, expected FILE.npz, a .zip or a folder")
    return path


def _in_label_order(spec: str, dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    unknown = sorted(set(dataset.classes) - set(class_names))
    if unknown:
        raise UserError(
            f"{spec}: holds the class {unknown[0]}, expected only {', '.join(class_names)}"
        )
    new_label = np.array([class_names.index(name) for name in dataset.classes], np.int32)
    return dataclasses.replace(
        dataset, labels=new_label[dataset.labels], classes=tuple(class_names)
    )
