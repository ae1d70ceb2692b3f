"""Folders and zips of pictures, one folder a class: `[<split>/]<class>/<image>`."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Sequence
from concurrent import futures
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from bloodjax.data import images
from bloodjax.data.archive import Archive, open_archive
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

LAYOUTS = "expected <class>/<image> or <split>/<class>/<image> with splits train, val, test"

# Decoding a small picture holds the interpreter lock for a good part of the time.
_MAX_THREADS = 8
_CHUNK = 64

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which file is a picture, and of what: fields as in Dataset, in the order of their paths."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    folders: tuple[str, ...]  # the class folder of each picture
    classes: tuple[str, ...]
    groups: tuple[str, ...]


def read(path: pathlib.Path, size: int, bad_images: Literal["fail", "skip"]) -> Dataset:
    """Reads every picture of a folder or zip, sorted by path; its classes are the sorted folders.

    A single folder around everything is looked through. A file `groups.csv` beside the class (or
    split) folders, with the header `name,group` and names as it sees them, gives pictures a group;
    the others have none.

    Raises:
      UserError: no pictures, a layout other than `LAYOUTS`, a `groups.csv` that does not fit, or
        (with `bad_images` "fail") a file in a class folder that is not a readable image.
    """
    with open_archive(path) as archive:
        layout = _find_layout(path, archive)
        pictures, readable = decode_all(path, archive, layout.names, size, bad_images)
    if not readable.any():
        raise UserError(f"{path}: holds no readable images, {LAYOUTS}")
    label_of = {name: label for label, name in enumerate(layout.classes)}
    dataset = Dataset(
        images=pictures,
        labels=np.array([label_of[folder] for folder in layout.folders], np.int32),
        names=layout.names,
        classes=layout.classes,
        splits=layout.splits,
        groups=layout.groups,
    )
    return dataset if readable.all() else dataset.take(readable)


def _find_layout(path: pathlib.Path, archive: Archive) -> _Layout:
    root = _wrapping(archive)
    files = [name[len(root) :].split("/") for name in archive.files]
    folders = [name[len(root) :].split("/") for name in archive.folders if name.startswith(root)]
    tops = {parts[0] for parts in folders}
    depth = 3 if tops and all(top.lower() in SPLITS for top in tops) else 2
    pictures = []
    for parts in files:
        if len(parts) == depth:
            pictures.append(parts)
        elif len(parts) > depth or parts[-1].lower().endswith(images.SUFFIXES):
            raise UserError(f"{path}: {root}{'/'.join(parts)} is out of place, {LAYOUTS}")
    classes = {parts[-2] for parts in pictures}
    classes.update(parts[-1] for parts in folders if len(parts) == depth - 1)
    relative = ["/".join(parts) for parts in pictures]
    group_of = _read_groups(path, archive, root, relative)
    return _Layout(
        names=tuple(root + name for name in relative),
        splits=tuple(SPLITS[parts[0].lower()] if depth == 3 else "" for parts in pictures),
        folders=tuple(parts[-2] for parts in pictures),
        classes=tuple(sorted(classes)),
        groups=tuple(group_of.get(name, "") for name in relative),
    )


def _wrapping(archive: Archive) -> str:
    """The folder around everything, as "name/"; "" where there is none."""
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
    path: pathlib.Path, archive: Archive, root: str, pictures: Sequence[str]
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
    unknown = sorted(groups.keys() - set(pictures))
    if unknown:
        raise UserError(f"{path}: {name} names {unknown[0]}, which is no picture beside it")
    return groups


def decode_all(
    path: pathlib.Path,
    archive: Archive,
    names: Sequence[str],
    size: int,
    bad_images: Literal["fail", "skip"],
) -> tuple[UInt8[np.ndarray, "n {size} {size} 3"], Bool[np.ndarray, " n"]]:
    """All of the `names` in an open `archive`, and which of them could be read.

    Raises:
      UserError: one could not, and `bad_images` is "fail".
    """
    pictures = np.zeros((len(names), size, size, 3), np.uint8)
    readable = np.ones(len(names), bool)

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(names))):
            try:
                pictures[i] = images.decode(archive.read(names[i]), size)
            except ValueError as error:
                if bad_images == "fail":
                    raise UserError(
                        f"{path}: {names[i]} is not a readable image ({error}); mend or remove it, "
                        "or set config.data.bad_images=skip"
                    ) from error
                readable[i] = False

    with futures.ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, len(names), _CHUNK)):
            pass  # raises the first failure in the order of names, and cancels what waits

    skipped = [names[i] for i in np.flatnonzero(~readable)]
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        _log.warning("%s: skipped %d unreadable images: %s", path, len(skipped), shown)
    return pictures, readable
