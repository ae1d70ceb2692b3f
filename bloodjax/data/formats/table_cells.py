"""The cells of a table of any format as texts.

Rows are counted as a spreadsheet counts them: the header is row 1.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import decimal
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bloodjax.data import names
from bloodjax.data.formats import delimited
from bloodjax.data.formats.archive import read_file
from bloodjax.errors import UserError
from bloodjax.io import parquet, remote

SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
# What other programs write that could be saved as one of `SUFFIXES`.
_OTHERS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      number: Its number in the file, from 2 on.
      cells: Its cells, as many as the header has.
    """

    number: int
    cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a table as texts.

    Attributes:
      where: The SPEC of the table.
      header: Names of the columns, without blanks at their ends.
      rows: The rows that are not empty.
      details: Facts for `Reading.details`.
      unread: Column -> type, of columns whose values cannot be read as texts.
    """

    where: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    details: tuple[str, ...] = ()
    unread: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def place(self, row: Row, column: int) -> str:
        """The place of a cell, for messages."""
        return f"{self.where}: row {row.number}, column {self.header[column]}"


def has_suffix(path: str) -> bool:
    """Whether a path ends like the name of a table."""
    return pathlib.PurePosixPath(path).suffix.lower() in (*SUFFIXES, *_OTHERS)


def read(spec: str) -> Cells:
    """Reads the cells of a table.

    Raises:
      UserError: The file is missing, damaged, of another format, or has no rows.
    """
    path = pathlib.Path(os.path.expanduser(remote.local(spec)))
    suffix = path.suffix.lower()
    if suffix in _OTHERS:
        raise UserError(f"{spec}: expected the table as one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{spec}: no such file")
    details: tuple[str, ...] = ()
    unread: Mapping[int, str] = {}
    if suffix == ".parquet":
        try:
            header, values, unread = parquet.read(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{spec}: cannot be read as Parquet ({error})") from error
        table = [header, *map(list, zip(*values, strict=True))]
    elif suffix == ".xlsx":
        from bloodjax.data.formats import excel

        table, details = excel.rows(path)
    else:
        table, details = _delimited(spec, path)
    texts = [[_text(cell) for cell in row] for row in table]
    return dataclasses.replace(_cells(spec, texts, details), unread=unread)


def _delimited(spec: str, path: pathlib.Path) -> tuple[list[list[str]], tuple[str, ...]]:
    try:
        text, encoding = delimited.decode_any(read_file(path))
        table = delimited.rows(text, "\t" if path.suffix.lower() == ".tsv" else "", strict=True)
    except csv.Error as error:
        raise UserError(f"{spec}: {error}, expected CSV with one row per image") from error
    except ValueError as error:
        raise UserError(f"{spec}: cannot be read as text ({error})") from error
    return table, () if encoding == "UTF-8" else (f"read as {encoding}",)


def _cells(spec: str, table: Sequence[Sequence[str]], details: tuple[str, ...]) -> Cells:
    numbered = [(i, row) for i, row in enumerate(table, 1) if any(row)]
    if len(numbered) < 2:
        raise UserError(f"{spec}: has no rows, expected a header and one row per image")
    (_, first), *rest = numbered
    width = max(i for i, cell in enumerate(first, 1) if cell)
    header = tuple(names.tidy(cell) if cell else "" for cell in first[:width])
    rows = []
    for number, row in rest:
        if any(row[width:]) or len(row) < width:
            used = max(width if len(row) >= width else len(row), _used(row))
            raise UserError(
                f"{spec}: row {number} has {used} cells, expected {width} as in the header"
            )
        rows.append(Row(number, tuple(row[:width])))
    return Cells(spec, header, tuple(rows), details)


def _used(row: Sequence[str]) -> int:
    return max((i for i, cell in enumerate(row, 1) if cell), default=0)


def _text(cell: Any) -> str:
    """A cell as text; whole numbers have no decimals, and what is missing is ""."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, float):
        if math.isnan(cell):
            return ""
        return str(int(cell)) if cell.is_integer() and abs(cell) < 2**53 else repr(cell)
    if isinstance(cell, decimal.Decimal):
        return str(int(cell)) if cell == cell.to_integral_value() else f"{cell.normalize():f}"
    if isinstance(cell, (datetime.datetime, datetime.date)):
        return cell.isoformat()
    return str(cell).strip()
