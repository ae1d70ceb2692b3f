"""Datasets of the library `datasets` of Hugging Face: of the Hub, or saved to a folder.

`hf_splits` opens their splits. Each row has an image, and its label, group and weight in other
features (columns). The images stay encoded in Arrow files, and `data.images` decodes them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from bloodjax.data import names as names_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import columns as columns_lib
from bloodjax.data.formats import groups, hf_splits, labels
from bloodjax.data.formats.annotations import Annotations
from bloodjax.data.formats.archive import Archive, read_file
from bloodjax.data.formats.columns import GROUP, LABEL, PATH, WEIGHT
from bloodjax.data.formats.labels import Labels
from bloodjax.data.formats.layout import SPLITS
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError

_ROW = "row"  # key of the labels, for messages
_LAYOUT = "dataset of Hugging Face"


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of all splits, one after another.

    Attributes:
      where: The SPEC, for messages.
      splits: Name of each split -> its `datasets.Dataset`.
      names: Unique name of each row's image.
      columns: Kind (`columns.KINDS`) -> the feature of that kind; a missing kind has none.
      details: Facts for `Reading.details`.
    """

    where: str
    splits: Mapping[str, Any]
    names: tuple[str, ...]
    columns: Mapping[str, str]
    details: tuple[str, ...]

    def values(self, kind: str) -> list:
        """The values of the feature of a kind, of all rows."""
        column = self.columns[kind]
        return [
            value
            for rows in self.splits.values()
            for value in rows.select_columns(column)[:][column]
        ]

    def split_of(self) -> list[str]:
        """The split of each row."""
        return [
            SPLITS.get(name.lower(), name)
            for name, rows in self.splits.items()
            for _ in range(len(rows))
        ]

    def archive(self) -> Archive:
        """The encoded images by name."""
        library, column = hf_splits.library(self.where), self.columns[PATH]
        undecoded = [
            rows.select_columns(column).cast_column(column, library.Image(decode=False))
            for rows in self.splits.values()
        ]
        starts = np.cumsum([0, *map(len, undecoded)]).tolist()
        number = {name: i for i, name in enumerate(self.names)}

        def read(name: str) -> bytes:
            i = number[name]
            split = int(np.searchsorted(starts, i, side="right")) - 1
            return _file(undecoded[split][i - starts[split]][column])

        return Archive(self.names, frozenset(), read)


def read_dataset(
    spec: str,
    size: int,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    *,
    positional: bool = True,
    lazy: bool = False,
) -> Dataset:
    """Reads the labelled images of a dataset. Rows without a label are left out.

    Args:
      spec: A dataset of the Hub, or a folder that `save_to_disk` has written.
      size: Height and width of the images in pixels.
      options: How the images are read; `columns` states features that cannot be found.
      class_names: Names of classes in label order, for labels without names of their own.
      positional: Whether such labels may be positions in `class_names`.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: The dataset is not there, or it has no image or no label that can be found.
    """
    rows = _open(spec, options)
    found = _annotations(rows, class_names, positional, options.first_label).labelled()
    return found.read(spec, _LAYOUT, rows.archive(), size, options, lazy=lazy)


def read_images(spec: str, size: int, options: ReadOptions = DEFAULTS) -> Dataset:
    """Reads the images of a dataset; it needs no labels.

    Raises:
      UserError: As for `read_dataset`.
    """
    rows = _open(spec, options, needs_labels=False)
    group_of, facts = _groups(rows)
    found = Annotations.without_labels(rows.names, group_of, (*rows.details, *facts))
    return found.read(spec, _LAYOUT, rows.archive(), size, options)


def file_reader(spec: str, options: ReadOptions = DEFAULTS) -> Callable[[str], bytes]:
    """A function from the name of an image of a dataset to its file.

    Raises:
      UserError: As for `read_dataset`.
    """
    return _open(spec, options, needs_labels=False).archive().read


def read(spec: str, options: ReadOptions = DEFAULTS) -> Annotations:
    """What a dataset states of its labelled images, without reading them.

    Raises:
      UserError: As for `read_dataset`.
    """
    return _annotations(_open(spec, options)).labelled()


def fingerprint(spec: str, options: ReadOptions = DEFAULTS) -> str:
    """Fingerprint of a dataset: name, label, split, group, weight and bytes of each image.

    Raises:
      UserError: As for `read_dataset`.
    """
    rows = _open(spec, options)
    return _annotations(rows).fingerprint(spec, rows.archive().read)


def _open(spec: str, options: ReadOptions, *, needs_labels: bool = True) -> _Rows:
    splits, details = hf_splits.read(spec)
    columns = _columns(spec, splits, options.columns, needs_labels=needs_labels)
    hf_splits.validate(spec, splits, columns.values())
    shown = ", ".join(f"{kind}={column}" for kind, column in columns.items())
    names = _names(splits, columns[PATH])
    return _Rows(spec, splits, names, columns, (*details, f"columns {shown}"))


def _columns(
    spec: str, splits: Mapping[str, Any], text: str, *, needs_labels: bool
) -> dict[str, str]:
    """The feature of each kind that the dataset has."""
    library = hf_splits.library(spec)
    features = next(iter(splits.values())).features
    stated = columns_lib.parse(text)
    if not needs_labels:  # of the run's columns, images to classify may lack all but these
        stated = {
            kind: name
            for kind, name in stated.items()
            if kind == PATH or (kind == GROUP and name in features)
        }
    for kind, name in stated.items():
        if name and name not in features and kind != "split":
            raise UserError(
                f"{spec}: has no feature {name} (config.data.columns or --columns), only "
                f"{', '.join(features)}"
            )
    plain = [
        name
        for name, kind in features.items()
        if isinstance(kind, (library.Value, library.ClassLabel))
    ]
    found = {PATH: stated.get(PATH) or _only(spec, features, PATH, library.Image)}
    if not isinstance(features[found[PATH]], library.Image):
        raise UserError(f"{spec}: the feature {found[PATH]} has no images, expected an Image")
    if needs_labels:
        label = stated.get(LABEL)
        if not label and not any(isinstance(features[n], library.ClassLabel) for n in plain):
            label = columns_lib.by_name(spec, plain, LABEL)
        found[LABEL] = label or _only(spec, features, LABEL, library.ClassLabel)
        if found[LABEL] not in plain:
            raise UserError(f"{spec}: the feature {found[LABEL]} has no label for each image")
    for kind in (GROUP, WEIGHT) if needs_labels else (GROUP,):
        name = stated[kind] if kind in stated else columns_lib.by_name(spec, plain, kind)
        if name:
            found[kind] = name
    for split, rows in splits.items():
        for name in found.values():
            if name not in rows.features:
                raise UserError(f"{spec}: split {split} has no feature {name}")
    return found


def _only(spec: str, features: Mapping[str, Any], kind: str, type_: type) -> str:
    """The one feature of a type."""
    found = [name for name, feature in features.items() if isinstance(feature, type_)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(found) if found else f"none among {', '.join(features)}"
    raise UserError(
        f"{spec}: expected one feature of the type {type_.__name__}, found {shown}; name it with "
        f"config.data.columns={kind}=NAME (--columns={kind}=NAME)"
    )


def _names(splits: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """`SPLIT/FILE` if the images of each split have distinct file names, else `SPLIT/INDEX`."""
    files = {split: _file_names(rows, column) for split, rows in splits.items()}
    distinct = all(all(names) and len(set(names)) == len(names) for names in files.values())
    return tuple(
        f"{split}/{name}" if split else str(name)
        for split, names in files.items()
        for name in (names if distinct else range(len(names)))
    )


def _file_names(rows, column: str) -> list[str]:
    """The last part of the path of each row's image, without reading the images."""
    table = rows.with_format("arrow").select_columns(column)
    paths: list[str] = []
    for batch in table.iter(1000):
        paths += batch.column(column).combine_chunks().field("path").to_pylist()
    return [(path or "").replace("\\", "/").rpartition("/")[2] for path in paths]


def _file(image: Mapping[str, Any] | None) -> bytes:
    """The encoded image of a cell."""
    if image is None:
        raise ValueError("the cell is empty")
    if image.get("bytes") is not None:
        return image["bytes"]
    path = str(image.get("path") or "")
    if not os.path.isabs(path):
        raise ValueError(f"it is at {path or 'no path'}, expected its bytes in the dataset")
    return read_file(pathlib.Path(path))


def _annotations(
    rows: _Rows, class_names: Sequence[str] = (), positional: bool = True, first: str = ""
) -> Annotations:
    """What the features state of all rows."""
    found = _labels(rows, class_names, positional, first)
    group_of, group_facts = _groups(rows)
    details = (*rows.details, *found.details, *group_facts)
    splits, weights, labels_of = tuple(rows.split_of()), _weights(rows), found.by_key[_ROW]
    return Annotations(
        rows.names,
        labels_of,
        found.classes,
        splits,
        tuple(group_of),
        weights,
        details,
        first_label=found.first,
    )


def _labels(rows: _Rows, class_names: Sequence[str], positional: bool, first: str) -> Labels:
    """Class index of each row, -1 for one without a label, under the key `_ROW`."""
    column = rows.columns[LABEL]
    feature = next(iter(rows.splits.values())).features[column]
    if isinstance(feature, hf_splits.library(rows.where).ClassLabel):
        classes = tuple(map(names_lib.tidy, feature.names))
        if twice := sorted(c for c, n in collections.Counter(classes).items() if n > 1):
            raise UserError(f"{rows.where}: {column} has two classes called {twice[0]}")
        found = Labels({_ROW: _class_labels(rows, feature.names)}, classes)
    else:
        found = _plain_labels(rows, class_names, positional, first)
    if (found.by_key[_ROW] < 0).all():
        raise UserError(f"{rows.where}: no row has a label in {column}, expected labels")
    return found


def _class_labels(rows: _Rows, classes: Sequence[str]) -> Int32[np.ndarray, " n"]:
    """The labels of a feature of the type ClassLabel, which has the names of its classes."""
    column = rows.columns[LABEL]
    for split, each in rows.splits.items():
        if each.features[column].names != classes:
            raise UserError(f"{rows.where}: split {split} has other classes in {column}")
    found = np.array([-1 if v is None else max(v, -1) for v in rows.values(LABEL)], np.int32)
    if found.max() >= len(classes):
        raise UserError(f"{rows.where}: {column} has {found.max()}, a label without a name")
    return found


def _plain_labels(rows: _Rows, class_names: Sequence[str], positional: bool, first: str) -> Labels:
    """The labels of a feature of numbers or texts."""
    values = rows.values(LABEL)
    found = np.full(len(values), -1, np.int32)
    known = np.array([_is_label(value) for value in values], bool)
    if not known.any():
        return Labels({_ROW: found}, ())
    array = np.array([v for v, k in zip(values, known, strict=True) if k])
    where = f"{rows.where}: {rows.columns[LABEL]}"
    read = labels.read(
        where, {_ROW: array}, None, class_names, (), positional=positional, first=first
    )
    found[known] = read.by_key[_ROW]
    return dataclasses.replace(read, by_key={_ROW: found})


def _is_label(value: object) -> bool:
    """Whether a cell of numbers or texts has a label: it is not null, empty, NaN or -1."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return value != -1 and str(value).strip() != ""


def _groups(rows: _Rows) -> tuple[list[str], tuple[str, ...]]:
    if GROUP not in rows.columns:
        return [""] * len(rows.names), ()
    return groups.of_column(["" if v is None else str(v) for v in rows.values(GROUP)])


def _weights(rows: _Rows) -> Float32[np.ndarray, " n"] | None:
    if WEIGHT not in rows.columns:
        return None
    values = rows.values(WEIGHT)
    for name, value in zip(rows.names, values, strict=True):
        if not isinstance(value, (int, float)) or not 0 <= value <= np.finfo(np.float32).max:
            raise UserError(
                f"{rows.where}: {name}: the weight {value} in {rows.columns[WEIGHT]}, expected a "
                "number of at least 0"
            )
    return np.array(values, np.float32)
