"""Folders and zips with one folder of images per class: `[<split>/]<class>/<image>`."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from bloodjax.data.dataset import Dataset
from bloodjax.data.formats.archive import Archive, keep_open
from bloodjax.data.images import SUFFIXES, decode
from bloodjax.data.lazy import Images, decode_lazily, outgrows_memory, run_in_threads
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

LAYOUTS = "expected <class>/<image> or <split>/<class>/<image> with splits train, val, test"

_CHUNK = 64

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _ImageFiles:
    """The image files in the order of their paths; fields are as in Dataset."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    folders: tuple[str, ...]  # the class folder of each image
    classes: tuple[str, ...]
    groups: tuple[str, ...]


def read_dataset(
    path: pathlib.Path, size: int, options: ReadOptions = DEFAULTS, *, lazy: bool = False
) -> Dataset:
    """Reads the images of a folder or zip, sorted by path; classes are the sorted folder names.

    A single folder that contains everything else is skipped. A file `groups.csv` next to the class
    (or split) folders, with the header `name,group` and names relative to its own folder, assigns
    groups to images; images that it does not list have none.

    All images are decoded once, even if they are lazy, to find those that are unreadable.

    Args:
      path: The folder or zip.
      size: Height and width of the images in pixels.
      options: How the images are read.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: There are no images, the layout is not one of `LAYOUTS`, `groups.csv` does not
        fit, or (with `options.bad_images` "fail") a file in a class folder is not a readable image.
    """
    archive = keep_open(path)
    files = _find_images(path, archive)
    images, readable = read_images(path, archive, files.names, size, options, lazy=lazy)
    if not readable.any():
        raise UserError(f"{path}: contains no readable images, {LAYOUTS}")
    label_of = {name: label for label, name in enumerate(files.classes)}
    dataset = Dataset(
        images=images,
        labels=np.array([label_of[folder] for folder in files.folders], np.int32),
        names=files.names,
        classes=files.classes,
        splits=files.splits,
        groups=files.groups,
    )
    return dataset if readable.all() else dataset.take(readable)


def _find_images(path: pathlib.Path, archive: Archive) -> _ImageFiles:
    root = _wrapping_folder(archive)
    files = [name[len(root) :].split("/") for name in archive.files]
    folders = [name[len(root) :].split("/") for name in archive.folders if name.startswith(root)]
    tops = {parts[0] for parts in folders}
    depth = 3 if tops and all(top.lower() in SPLITS for top in tops) else 2
    images = []
    for parts in files:
        if len(parts) == depth:
            images.append(parts)
        elif len(parts) > depth or parts[-1].lower().endswith(SUFFIXES):
            raise UserError(f"{path}: {root}{'/'.join(parts)} is out of place, {LAYOUTS}")
    classes = {parts[-2] for parts in images}
    classes.update(parts[-1] for parts in folders if len(parts) == depth - 1)
    relative = ["/".join(parts) for parts in images]
    group_of = _read_groups(path, archive, root, relative)
    return _ImageFiles(
        names=tuple(root + name for name in relative),
        splits=tuple(SPLITS[parts[0].lower()] if depth == 3 else "" for parts in images),
        folders=tuple(parts[-2] for parts in images),
        classes=tuple(sorted(classes)),
        groups=tuple(group_of.get(name, "") for name in relative),
    )


def _wrapping_folder(archive: Archive) -> str:
    """The folder that contains everything else, as "name/"; "" if there is none."""
    paths = [*archive.files, *archive.folders]
    root = ""
    while True:
        inside = [path[len(root) :].split("/") for path in paths if path.startswith(root)]
        tops = {parts[0] for parts in inside}
        deepest = max((len(parts) for parts in inside), default=0)
        if len(tops) != 1 or deepest < 3 or min(tops).lower() in SPLITS:
            return root
        root += f"{tops.pop()}/"


def _read_groups(
    path: pathlib.Path, archive: Archive, root: str, images: Sequence[str]
) -> dict[str, str]:
    name = root + "groups.csv"
    if name not in archive.files:
        return {}
    try:
        rows = list(csv.reader(io.StringIO(archive.read(name).decode("utf-8-sig"))))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: {name} cannot be read as CSV in UTF-8 ({error})") from error
    if not rows or rows[0] != ["name", "group"] or any(len(row) != 2 for row in rows if row):
        raise UserError(f"{path}: {name} does not have just the columns name,group")
    groups = {row[0]: row[1] for row in rows[1:] if row}
    unknown = sorted(groups.keys() - set(images))
    if unknown:
        raise UserError(f"{path}: {name} names {unknown[0]}, but there is no such image")
    return groups


def read_images(
    path: pathlib.Path,
    archive: Archive,
    names: Sequence[str],
    size: int,
    options: ReadOptions = DEFAULTS,
    *,
    lazy: bool = False,
) -> tuple[Images, Bool[np.ndarray, " n"]]:
    """Reads the images `names` of an open `archive`.

    Args:
      path: The folder or zip, for messages.
      archive: The same, opened.
      names: Paths of the images in the archive.
      size: Height and width of the images in pixels.
      options: How the images are read.
      lazy: Whether the images are lazy even if they fit in memory.

    Returns:
      All images, and which of them are readable.

    Raises:
      UserError: An image is unreadable and `options.bad_images` is "fail".
    """
    lazy = lazy or outgrows_memory(len(names) * size**2 * 3)
    images = np.zeros((0 if lazy else len(names), size, size, 3), np.uint8)
    readable = np.ones(len(names), bool)

    def to_error(i: int, error: ValueError) -> UserError:
        return UserError(
            f"{path}: {names[i]} is not a readable image ({error}); mend or remove it, or set "
            "config.data.bad_images=skip"
        )

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(names))):
            try:
                image = decode(archive.read(names[i]), size)
            except ValueError as error:
                if options.bad_images == "fail":
                    raise to_error(i, error) from error
                readable[i] = False
            else:
                if not lazy:
                    images[i] = image

    def read_files(indices: Sequence[int]) -> list[bytes]:
        files = []
        for i in indices:
            try:
                files.append(archive.read(names[i]))
            except ValueError as error:
                raise to_error(i, error) from error
        return files

    run_in_threads(decode_chunk, range(0, len(names), _CHUNK))
    skipped = [names[i] for i in np.flatnonzero(~readable)]
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        _log.warning("%s: skipped %d unreadable images: %s", path, len(skipped), shown)
    if lazy:
        return decode_lazily(read_files, len(names), size, to_error), readable
    return images, readable
