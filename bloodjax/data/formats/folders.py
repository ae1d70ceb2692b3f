"""Folders and zips whose folders are classes: `[<split>/]<class>/<image>`, see `layout`."""

from __future__ import annotations

import collections
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from bloodjax.data import names
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import groups as groups_lib
from bloodjax.data.formats import image_files, layout, table_cells
from bloodjax.data.formats.archive import Archive, keep_open
from bloodjax.data.formats.layout import Layout
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.errors import UserError

_log = logging.getLogger(__name__)


def read_dataset(
    path: pathlib.Path,
    size: int,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    *,
    lazy: bool = False,
) -> Dataset:
    """Reads the images of a folder or zip, sorted by path.

    Classes are the names of folders in the order of `names.in_order`. Folders whose names differ
    only in form, such as Basophil and basophil, are one class, unless `class_names` has both.

    Images get groups from folders (see `layout`), or from tables `groups.csv` (see `groups`), which
    come first.

    All images are decoded once, even if they are lazy, to find those that are unreadable.

    Args:
      path: The folder or zip.
      size: Height and width of the images in pixels.
      options: How the images are read.
      class_names: Names of classes that the folders may stand for; a folder whose name differs only
        in form gets this name.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: There are no images, the layout is not clear, a table of groups does not fit, or
        (with `options.bad_images` "fail") a file in a class folder is not a readable image.
    """
    archive = keep_open(path)
    tables = groups_lib.tables(archive.files)
    try:
        found = layout.find(path, archive.files, archive.folders, options.layout, tables)
    except UserError as error:
        raise UserError(f"{error}{_hint(path, archive)}") from None
    groups = groups_lib.read(path, archive, found.names, found.root)
    class_of, renamed = _class_of_folder(found, class_names)
    images, readable, tally = image_files.read(path, archive, found.names, size, options, lazy=lazy)
    if not readable.any():
        raise UserError(f"{path}: contains no readable images{_kinds(archive)}, {layout.EXPECTED}")
    if not groups.details and groups_lib.is_beside(path):
        _log.warning("%s: %s beside it is not read, expected in it", path, groups_lib.TABLE)
    for line in groups.warnings:
        _log.warning(line)
    if groups.partly and not all(found.groups):
        _log.warning(groups.partly)
    classes = names.in_order(set(class_of.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [class_of[folder] for folder in found.folders]
    reading = Reading(
        layout=found.description,
        details=(*found.details, *groups.details, *renamed, *archive.details),
        left_out=(*archive.left_out, *found.left_out),
    )
    return Dataset(
        images=images,
        labels=np.array([label_of[name] for name in labels], np.int32),
        names=found.names,
        classes=classes,
        splits=found.splits,
        groups=tuple(
            groups.group_of.get(name, group)
            for name, group in zip(found.names, found.groups, strict=True)
        ),
        reading=reading.with_tally(tally, options),
    ).only_readable(readable)


def _class_of_folder(
    found: Layout, class_names: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The class of each folder's name, and facts about names that differ from their class's."""
    count = collections.Counter(found.folders)
    known = names.match(found.classes, class_names)
    others = names.most_frequent({name: count[name] for name in found.classes - known.keys()})
    class_of = known | {folder: names.tidy(name) for folder, name in others.items()}
    # Names that look the same in print are shown as Python writes them.
    facts = [
        f"{folder} taken as {name}"
        if folder.isprintable() and names.tidy(folder) == folder
        else f"{folder!a} taken as {name}"
        for folder, name in sorted(class_of.items())
        if folder != name
    ]
    return class_of, tuple(facts[:5] + ([f"{len(facts) - 5} more"] if len(facts) > 5 else []))


def _hint(path: pathlib.Path, archive: Archive) -> str:
    """For a message: the tables beside images that are in no folder of a class."""
    found = [name for name in archive.files if "/" not in name and table_cells.has_suffix(name)]
    if not found or not path.is_dir():
        return ""
    return f"; if {path / found[0]} is a table of labels, expected it as the SPEC"


def _kinds(archive: Archive) -> str:
    """The kinds of the files that there are instead of images, for a message."""
    count = collections.Counter(pathlib.PurePosixPath(name).suffix for name in archive.files)
    if not count:
        return ""
    shown = ", ".join(f"{n} {kind or 'files without a suffix'}" for kind, n in count.most_common(3))
    hint = "; export them as image files" if {".parquet", ".arrow"} & count.keys() else ""
    return f" (found {shown}{hint})"
