"""Tables of images and labels: CSV, TSV, Parquet or Excel, with one row per image.

`table_cells` reads the file, `columns` says which column means what, and `table_images` which image
a row names.
"""

from __future__ import annotations

import collections
import math
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from bloodjax.data import names
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import columns as columns_lib
from bloodjax.data.formats import groups, labels, table_cells
from bloodjax.data.formats.annotations import Annotations
from bloodjax.data.formats.columns import Columns
from bloodjax.data.formats.labels import Labels
from bloodjax.data.formats.layout import SPLITS
from bloodjax.data.formats.table_cells import Cells, Row
from bloodjax.data.formats.table_images import TableImages
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError
from bloodjax.io import bucket_urls

_LARGEST = float(np.finfo(np.float32).max)
_NUMBER = re.compile("[0-9]{1,9}")
_ROW = "row"  # key of the labels, for messages


def read_dataset(
    spec: str,
    size: int,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    *,
    positional: bool = True,
    lazy: bool = False,
) -> Dataset:
    """Reads the images of a table, sorted by their names, so the order of rows does not matter.

    Args:
      spec: Path or URL of the table.
      size: Height and width of the images in pixels.
      options: How the images are read, and what the columns mean.
      class_names: Names of classes in label order; a label that is none of them is an error.
      positional: Whether labels that are numbers may be positions in `class_names`.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: The table, a row or an image is wrong; the message names row and column.
    """
    images, found = read(spec, options, class_names, positional=positional)
    archive = images.archive(found.names)
    return found.read(spec, _layout(found), archive, size, options, lazy=lazy)


def read_images(spec: str, size: int, options: ReadOptions = DEFAULTS) -> Dataset:
    """Reads the images of a table in the order of its rows; it needs no labels.

    Raises:
      UserError: As for `read_dataset`.
    """
    images, found = _without_labels(spec, options)
    return found.read(spec, _layout(found), images.archive(found.names), size, options)


def file_reader(spec: str, options: ReadOptions = DEFAULTS) -> Callable[[str], bytes]:
    """A function from the name of an image of a table to its file.

    Raises:
      UserError: As for `read_dataset`.
    """
    images, found = _without_labels(spec, options)
    return images.archive(found.names).read


def read(
    spec: str,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    *,
    positional: bool = True,
    refuses_missing: bool = True,
) -> tuple[TableImages, Annotations]:
    """Reads a table and finds its images, without reading them.

    Args:
      spec: As for `read_dataset`.
      options: As for `read_dataset`.
      class_names: As for `read_dataset`.
      positional: As for `read_dataset`.
      refuses_missing: Whether a label that programs write for a missing value, such as "None", is
        an error unless it is one of `class_names`. An empty label always is.

    Returns:
      The images, and what the table states of them in the order of their names. A name is the path
      of an image below the folder, or its URL.

    Raises:
      UserError: As for `read_dataset`.
    """
    cells = table_cells.read(spec)
    rows = [row.cells for row in cells.rows]
    columns = columns_lib.find(cells.where, cells.header, rows, options.columns)
    _check_read(cells, columns)
    images = TableImages(_root(spec, options))
    found = _find(cells, columns, images)
    if refuses_missing and not columns.is_one_hot:
        _refuse_missing(cells, columns.label[0], class_names)
    named = _labels(cells, columns, class_names, positional, options.first_label)
    group_of, group_details = _groups(cells, columns)
    splits = _splits(cells, columns)
    weights = _weights(cells, columns)
    details = [*cells.details, *columns.details, *named.details, *group_details]
    if weights is not None:
        details.append(f"weights {weights.min():g} to {weights.max():g}")
    details += _place_of_images(options)
    annotations = Annotations(
        found,
        named.by_key[_ROW],
        named.classes,
        tuple(splits),
        tuple(group_of),
        weights,
        tuple(details),
        first_label=named.first,
    )
    return images, annotations.take(np.array(sorted(range(len(found)), key=found.__getitem__)))


def fingerprint(spec: str, options: ReadOptions = DEFAULTS) -> str:
    """Fingerprint of a table: name, label, split, group and weight of each image, and its bytes.

    The order of rows, the format of the file and columns that are not used do not matter. Neither
    do the classes that a user lists, so a class may be called "None" here.

    Raises:
      UserError: As for `read_dataset`.
    """
    images, found = read(spec, options, refuses_missing=False)
    return found.fingerprint(spec, images.archive(found.names).read)


def _check_read(cells: Cells, columns: Columns) -> None:
    """Raises a UserError if the values of a column that is needed are not read."""
    for column in columns.used:
        if column in cells.unread:
            raise UserError(
                f"{cells.where}: column {cells.header[column]} has the type "
                f"{cells.unread[column]}, expected text, numbers or dates"
            )


def _root(spec: str, options: ReadOptions) -> str:
    """The folder, zip or URL that paths in a table are relative to."""
    if options.images:
        return options.images
    if bucket_urls.is_remote(spec):
        return spec.rpartition("/")[0]
    return str(pathlib.Path(os.path.expanduser(spec)).parent)


def _layout(found: Annotations) -> str:
    n = len(found.names)
    return f"table of {n:,} image{'s' if n > 1 else ''}"


def _place_of_images(options: ReadOptions) -> tuple[str, ...]:
    return (f"images in {options.images}",) if options.images else ()


def _without_labels(spec: str, options: ReadOptions) -> tuple[TableImages, Annotations]:
    """What `read` returns, of a table that needs no labels, in the order of its rows."""
    cells = table_cells.read(spec)
    # A table of images to classify may lack the column of groups that the training table had.
    columns = columns_lib.find(
        cells.where,
        cells.header,
        (),
        options.columns,
        needs_labels=False,
        optional=(columns_lib.GROUP,),
    )
    _check_read(cells, columns)
    images = TableImages(_root(spec, options))
    group_of, details = _groups(cells, columns)
    details = (*cells.details, *columns.details, *details, *_place_of_images(options))
    found = _find(cells, columns, images)
    return images, Annotations.without_labels(found, group_of, details)


def _find(cells: Cells, columns: Columns, images: TableImages) -> tuple[str, ...]:
    """The image of each row."""
    row_of: dict[str, int] = {}
    for row in cells.rows:
        cell, where = row.cells[columns.path], cells.place(row, columns.path)
        if not cell:
            raise UserError(f"{where}: is empty, expected the path of an image")
        try:
            name = images.find(cell)
        except LookupError as error:
            raise UserError(f"{where}: {cell[:200]}: {error.args[0]}") from None
        if name in row_of:
            raise UserError(
                f"{where}: {cell} is in row {row_of[name]} too, expected one row per image"
            )
        row_of[name] = row.number
    if failed := images.copy([name for name in row_of if bucket_urls.is_remote(name)]):
        url, reason = failed
        column = cells.header[columns.path]
        raise UserError(f"{cells.where}: row {row_of[url]}, column {column}: {url}: {reason}")
    return tuple(row_of)


def _labels(
    cells: Cells, columns: Columns, class_names: Sequence[str], positional: bool, first: str
) -> Labels:
    """Class index of each row, under the key `_ROW`; see `labels.read`."""
    if columns.is_one_hot:
        texts = [
            columns_lib.class_of(f"{cells.where}: row {number}", cells.header, row, columns)
            for number, row in cells.rows
        ]
    else:
        texts = [_label(cells, row, columns.label[0]) for row in cells.rows]
    known = names.match(sorted(set(texts)), class_names)
    # If some of the numbers are names of classes, the others are unknown classes.
    if class_names and not known and all(map(_NUMBER.fullmatch, texts)):
        array = np.array([int(text) for text in texts], np.int64)
        where = f"{cells.where}: column {cells.header[columns.label[0]]}"
        return labels.read(
            where, {_ROW: array}, None, class_names, (), positional=positional, first=first
        )
    if not class_names:
        class_names = _classes(cells, columns, texts)
        known = names.match(sorted(set(texts)), class_names)
    for row, text in zip(cells.rows, texts, strict=True):
        if text not in known:
            raise UserError(
                f"{cells.place(row, columns.label[0])}: the class {text} is unknown, expected one "
                f"of {names.shown(class_names)}"
            )
    index = {name: i for i, name in enumerate(class_names)}
    found = np.array([index[known[text]] for text in texts], np.int32)
    return Labels({_ROW: found}, tuple(class_names), names.taken_as(known))


def _classes(cells: Cells, columns: Columns, texts: Sequence[str]) -> tuple[str, ...]:
    """The classes of a table: of one-hot columns in their order, and else sorted."""
    if columns.is_one_hot:
        return tuple(names.tidy(cells.header[i]) for i in columns.label)
    return names.in_order({*names.most_frequent(collections.Counter(texts)).values()})


def _label(cells: Cells, row: Row, column: int) -> str:
    text = names.tidy(_whole(row.cells[column])).strip()
    if not text:
        raise UserError(f"{cells.place(row, column)}: is empty, expected a class")
    return text


def _refuse_missing(cells: Cells, column: int, class_names: Sequence[str]) -> None:
    """Refuses labels that programs write for a missing value, if no class is called so."""
    for row in cells.rows:
        text = row.cells[column]
        if text and labels.is_missing(text, class_names):
            raise UserError(f"{cells.place(row, column)}: {text} {labels.MISSING}")


def _whole(text: str) -> str:
    """A whole number that a program has written as a float, as a whole number."""
    return re.sub(r"^([0-9]{1,9})\.0+$", r"\1", text)


def _splits(cells: Cells, columns: Columns) -> list[str]:
    if columns.split is None:
        return [""] * len(cells.rows)
    found = []
    for row in cells.rows:
        text = row.cells[columns.split]
        split = SPLITS.get(names.form(text))
        if split is None:
            raise UserError(
                f"{cells.place(row, columns.split)}: {text or 'an empty cell'} is no split, "
                "expected train, val or test in each row; config.data.columns=split= "
                "(--columns=split=) leaves the column out"
            )
        found.append(split)
    return found


def _groups(cells: Cells, columns: Columns) -> tuple[list[str], tuple[str, ...]]:
    if columns.group is None:
        return [""] * len(cells.rows), ()
    return groups.of_column([row.cells[columns.group] for row in cells.rows])


def _weights(cells: Cells, columns: Columns) -> Float32[np.ndarray, " n"] | None:
    if columns.weight is None:
        return None
    weights = np.zeros(len(cells.rows), np.float32)
    for i, row in enumerate(cells.rows):
        text = row.cells[columns.weight]
        if re.fullmatch("[0-9]+,[0-9]+", text):  # a decimal comma
            text = text.replace(",", ".")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= _LARGEST:
            raise UserError(
                f"{cells.place(row, columns.weight)}: {text or 'an empty cell'} is no weight, "
                "expected a number of at least 0"
            )
        weights[i] = value
    return weights
