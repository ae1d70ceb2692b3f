"""Rows of an Excel workbook. The only module that imports openpyxl, from the extra `excel`."""

from __future__ import annotations

import pathlib
from typing import Any

from bloodjax.data.formats.archive import open_zip
from bloodjax.errors import UserError


def rows(path: pathlib.Path) -> tuple[list[list[Any]], tuple[str, ...]]:
    """The rows of the first sheet that is not empty, as text, numbers, dates and None.

    A formula has the value that the program which saved the file has computed.

    Returns:
      The rows, and facts for `Reading.details`.

    Raises:
      UserError: openpyxl is not installed, or the file is damaged or no workbook.
    """
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"{path}: reading Excel files needs openpyxl: pip install 'bloodjax[excel]', or save "
            "the table as CSV"
        ) from None
    # A workbook is a zip file; this refuses one that would fill the memory.
    open_zip(path, "Excel workbook").close()
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheets = [(sheet.title, _cells(sheet)) for sheet in book]
        finally:
            book.close()
    except Exception as error:  # its parsers raise any type on damaged files
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: cannot be read as an Excel workbook ({reason})") from error
    filled = [(title, found) for title, found in sheets if any(map(any, found))]
    if not filled:
        raise UserError(f"{path}: has no cells, expected a header and rows")
    (title, found), *others = filled
    return found, ((f"sheet {title}, of {len(filled)}",) if others else ())


def _cells(sheet: Any) -> list[list[Any]]:
    """The rows of a sheet, all of the same length."""
    # The size that a file states is a hint, which may be missing, stale or wrong. openpyxl would
    # cut the sheet to it.
    sheet.reset_dimensions()
    rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    width = max(map(len, rows), default=0)
    return [row + [None] * (width - len(row)) for row in rows]
