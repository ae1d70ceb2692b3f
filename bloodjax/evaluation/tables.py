"""The table of predictions, one row per image, as CSV or Parquet."""

from __future__ import annotations

import csv
import os
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from bloodjax.data.dataset import SEPARATOR, label_texts
from bloodjax.data.formats import groups as groups_lib
from bloodjax.errors import UserError
from bloodjax.io import parquet
from bloodjax.io.files import atomic_write
from bloodjax.metrics.group_predictions import GroupPredictions

CSV, PARQUET = ".csv", ".parquet"
# Columns beside the probabilities; `label`, `set` and `group` are left out where they do not apply.
_COLUMNS = ("name", "label", "predicted", "confidence", "refer", "why", "set", "group")
# Types of columns in Parquet; the others are texts.
_KINDS: dict[str, parquet.Kind] = {
    "refer": "int8",
    "n": "int64",
    "set": "texts",
    **dict.fromkeys(("label", "predicted", "why", "group"), "repeated text"),
    **dict.fromkeys(("majority", "mean_probability"), "repeated text"),
}
# Column -> its values: an array of probabilities, or a list in which None is an unknown value.
Columns = dict[str, list | np.ndarray]


def predictions(
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n classes"],
    labels: Sequence[str | None] | None = None,
    *,
    refer: Bool[np.ndarray, " n"] | None = None,
    why: Sequence[str] | None = None,
    sets: Bool[np.ndarray, "n classes"] | None = None,
    has: Bool[np.ndarray, "n classes"] | None = None,
    groups: Sequence[str] = (),
) -> Columns:
    """The columns of the table.

    They are `name[,label],predicted,confidence,refer,why[,set],<class>,...[,group]`. `group` is
    last, so that the probabilities keep their places.

    Args:
      names: Name of each image.
      classes: Class names in label order.
      probabilities: Class probabilities in 0..1.
      labels: Name of the true class of each image, None where it is unknown. Without labels the
        table has no column `label`.
      refer: Whether a person should look at the image. None: it is unknown.
      why: The reasons to refer it, "" if there are none. None: they are unknown.
      sets: Whether a class is in the image's conformal set. Without sets the table has no column
        `set`.
      has: Whether each label is predicted, for images with any number of labels. `predicted` then
        has all of them, joined by ";", and `confidence` is unknown.
      groups: Group of each image, "" if it has none. If no image has a group, the table has no
        column `group`.

    Returns:
      Column -> values, in the order of the table. `confidence` is the probability of the predicted
      class, `refer` is 0 or 1, and each class has a column of probabilities; see
      `probability_columns` for its name.
    """
    predicted = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, int)
    columns: Columns = {"name": list(names)}
    if labels is not None:
        columns["label"] = list(labels)
    if has is None:
        columns["predicted"] = [classes[i] for i in predicted]
        columns["confidence"] = probabilities[np.arange(len(predicted)), predicted]
    else:
        columns["predicted"] = label_texts(has.astype(int), classes)
        columns["confidence"] = [None] * len(predicted)
    columns["refer"] = [None] * len(predicted) if refer is None else [int(x) for x in refer]
    columns["why"] = [None] * len(predicted) if why is None else list(why)
    if sets is not None:
        columns["set"] = [[classes[i] for i in np.flatnonzero(row)] for row in sets]
    columns |= dict(zip(probability_columns(classes), probabilities.T, strict=True))
    if any(groups):
        columns["group"] = [group or None for group in groups]
    return columns


def by_group(
    names: Sequence[str],
    classes: Sequence[str],
    predictions: GroupPredictions,
    labelled: bool = True,
) -> Columns:
    """The columns of the table of groups, one row for each.

    They are `group,n[,label,accuracy],majority,mean_probability`, and for each class `predicted
    CLASS` (its share of the predictions), `probability CLASS` (its mean probability) and, with
    labels, `true CLASS` (its share of the labels).

    Args:
      names: Name of each group.
      classes: Class names in label order.
      predictions: Labels and predictions of each group.
      labelled: Whether the labels of the images are known.
    """

    def of(label: np.ndarray) -> list[str | None]:
        return [classes[i] if i >= 0 else None for i in label.tolist()]

    columns: Columns = {"group": list(names), "n": predictions.sizes.tolist()}
    if labelled:
        columns |= {"label": of(predictions.label), "accuracy": predictions.accuracy}
    columns["majority"] = of(predictions.majority)
    columns["mean_probability"] = of(predictions.most_probable)
    shares = {
        "predicted": predictions.predicted_shares,
        "probability": predictions.mean_probability,
    }
    if labelled:
        shares["true"] = predictions.true_shares
    for kind, values in shares.items():
        columns |= {f"{kind} {name}": values[:, i] for i, name in enumerate(classes)}
    return columns


def probability_columns(classes: Sequence[str]) -> list[str]:
    """A column name for each class: the class, but "probability of NAME" where a column has it."""
    columns: list[str] = []
    for name in classes:
        column = name
        while column in (*_COLUMNS, *columns):
            column = f"probability of {column}"
        columns.append(column)
    return columns


def check_targets(targets: Mapping[str, pathlib.Path], source: pathlib.Path) -> None:
    """Checks, before anything is computed, that tables can be written.

    Args:
      targets: Flag -> the file of a table.
      source: File or folder of the images; it need not exist.

    Raises:
      UserError: A file's suffix names no format that is written, or there is no folder for it; or
        it is a folder, a device, a read-only file, another table, the source itself, or the
        source's table of groups.
    """
    seen: dict[pathlib.Path, str] = {}
    for flag, path in targets.items():
        if path.suffix.lower() not in (CSV, PARQUET):
            raise UserError(f"{flag}={path}: expected FILE{CSV} or FILE{PARQUET}")
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no ordinary file"
            raise UserError(f"{flag}={path}: is {kind}, expected a file")
        if not path.parent.is_dir():
            raise UserError(f"{flag}={path}: there is no folder {path.parent}")
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"{flag}={path}: may not be written to, expected another file")
        real = path.resolve()
        if real in seen:
            raise UserError(f"{flag}={path}: is the file of {seen[real]} too, expected another")
        is_of_groups = path.name.casefold() == groups_lib.TABLE
        if real == source.resolve() or (
            is_of_groups and path.exists() and source.resolve() in real.parents
        ):
            raise UserError(f"{flag}={path}: is read with the images, expected another file")
        seen[real] = flag


def write(path: pathlib.Path, columns: Columns) -> None:
    """Writes a table atomically, as Parquet if the file's suffix is .parquet, otherwise as CSV."""
    is_parquet = path.suffix.lower() == PARQUET
    atomic_write(path, to_parquet(columns) if is_parquet else to_csv(columns))


def to_csv(columns: Columns) -> str:
    """Formats a table as CSV.

    Probabilities have six decimals, an unknown value is empty, and the classes of a set are joined
    by ";".
    """
    rows = zip(*(_cells(values) for values in columns.values()), strict=True)
    return csv_text([columns, *rows])


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    r"""Rows as CSV with lines that end in \n. A cell with \n or \r in it is quoted."""
    lines: list[str] = []
    sink = types.SimpleNamespace(write=lines.append)
    # The writer quotes those ends of lines only that it writes itself (Python 3.11).
    csv.writer(sink, lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _cells(values: list | np.ndarray) -> list[str | int | None]:
    if isinstance(values, np.ndarray):
        return [f"{x:.6f}" for x in values]
    return [SEPARATOR.join(x) if isinstance(x, list) else x for x in values]


def to_parquet(columns: Columns) -> bytes:
    """Formats a table as Parquet.

    Probabilities are float32, `refer` is int8, the number of images of a group is int64, a set is a
    list of texts and the other columns are texts. An unknown value is null.
    """
    encoded = {}
    for column, values in columns.items():
        if isinstance(values, np.ndarray):
            encoded[_utf8(column)] = parquet.Column(values, "float32")
        else:
            kind = _KINDS.get(column, "text")
            encoded[column] = parquet.Column([_utf8(x) for x in values], kind)
    return parquet.encode(encoded)


def _utf8(value):
    """The value with surrogates of its texts escaped, which Parquet cannot store."""
    if isinstance(value, list):
        return [_utf8(x) for x in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
