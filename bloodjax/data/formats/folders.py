"""Folders and zips of images, one folder a class: `[<split>/]<class>/<image>`."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from bloodjax.data import images, lazy
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats.archive import Archive, keep_open
from bloodjax.data.lazy import Images
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
class _Layout:
    """Which file is an image, and of what: fields as in Dataset, in the order of their paths."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    folders: tuple[str, ...]  # the class folder of each image
    classes: tuple[str, ...]
    groups: tuple[str, ...]


def read(
    path: pathlib.Path, size: int, bad_images: Literal["fail", "skip"], *, unread: bool = False
) -> Dataset:
    """The images of a folder or zip, sorted by path; its classes are the sorted folders.

    A single folder around everything is looked through. A file `groups.csv` beside the class (or
    split) folders, with the header `name,group` and names as it sees them, gives images a group;
    the others have none.

    The images stay unread (`lazy.LazyImages`) where they would take too much memory, or `unread`
    asks for it. They are all decoded once even so, to find what is no image.

    Raises:
      UserError: no images, a layout other than `LAYOUTS`, a `groups.csv` that does not fit, or
        (with `bad_images` "fail") a file in a class folder that is not a readable image.
    """
    archive = keep_open(path)
    layout = _find_layout(path, archive)
    pictures, readable = images_of(path, archive, layout.names, size, bad_images, unread=unread)
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
        raise UserError(f"{path}: {name} names {unknown[0]}, which is no image beside it")
    return groups


def images_of(
    path: pathlib.Path,
    archive: Archive,
    names: Sequence[str],
    size: int,
    bad_images: Literal["fail", "skip"],
    *,
    unread: bool = False,
) -> tuple[Images, Bool[np.ndarray, " n"]]:
    """All of the `names` in an open `archive`, and which of them can be read.

    Raises:
      UserError: one cannot, and `bad_images` is "fail".
    """
    unread = unread or lazy.outgrows_memory(len(names) * size**2 * 3)
    pictures = np.zeros((0 if unread else len(names), size, size, 3), np.uint8)
    readable = np.ones(len(names), bool)

    def refusal(i: int, error: ValueError) -> UserError:
        return UserError(
            f"{path}: {names[i]} is not a readable image ({error}); mend or remove it, or set "
            "config.data.bad_images=skip"
        )

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(names))):
            try:
                image = images.decode(archive.read(names[i]), size)
            except ValueError as error:
                if bad_images == "fail":
                    raise refusal(i, error) from error
                readable[i] = False
            else:
                if not unread:
                    pictures[i] = image

    def files(places: Sequence[int]) -> list[bytes]:
        found = []
        for i in places:
            try:
                found.append(archive.read(names[i]))
            except ValueError as error:
                raise refusal(i, error) from error
        return found

    lazy.in_threads(decode_chunk, range(0, len(names), _CHUNK))
    skipped = [names[i] for i in np.flatnonzero(~readable)]
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        _log.warning("%s: skipped %d unreadable images: %s", path, len(skipped), shown)
    if unread:
        return lazy.encoded(files, len(names), size, refusal), readable
    return pictures, readable
