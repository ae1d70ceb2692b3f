"""Tables as delimited text: CSV as spreadsheets, databases and programs write it."""

from __future__ import annotations

import csv
import io
import itertools
from typing import NamedTuple

# In the order in which a tie between them is decided.
_DELIMITERS = ",;\t|"
# A Unicode byte order mark at the start of the text.
_BOM = "\ufeff"


class Text(NamedTuple):
    """A decoded file.

    Attributes:
      text: Its content, without a byte order mark.
      encoding: "UTF-8", "UTF-16" or "Windows-1252".
    """

    text: str
    encoding: str


def decode(content: bytes) -> Text:
    """Decodes text as UTF-8 or UTF-16.

    Raises:
      UnicodeError: It is neither.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Text(content.decode("utf-16"), "UTF-16")
    if content[1:2] == b"\0" or content[:1] == b"\0":
        little = content[1:2] == b"\0"
        return Text(content.decode("utf-16-le" if little else "utf-16-be"), "UTF-16")
    return Text(content.decode("utf-8-sig"), "UTF-8")


def decode_any(content: bytes) -> Text:
    """Decodes text as UTF-8, UTF-16 or else Windows-1252, which contains Latin-1's letters.

    Raises:
      UnicodeError: It is none of them.
    """
    try:
        return decode(content)
    except UnicodeError:
        return Text(content.decode("cp1252"), "Windows-1252")


def without_hint(text: str) -> str:
    """The text without a first line that names the delimiter to spreadsheets, as in `sep=;`."""
    first, newline, rest = text.removeprefix(_BOM).partition("\n")
    return rest if newline and first.strip().lower().startswith("sep=") else text


def rows(text: str, delimiter: str = "", *, strict: bool = False) -> list[list[str]]:
    """Splits text into rows of cells, which may be in double quotes.

    Args:
      text: The table.
      delimiter: What separates cells; by default the one of comma, semicolon, tab and "|" that
        gives the first row the most cells, and of several the one that gives the second row as
        many.
      strict: Whether quotes that do not pair are an error.

    Raises:
      csv.Error: The text is not a table; the message names the row.
    """
    text = without_hint(text)
    if not delimiter:
        lines = [*itertools.islice(filter(str.strip, text.splitlines()), 2), "", ""]
        delimiter = max(_DELIMITERS, key=lambda each: _fit(*lines[:2], each))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    found: list[list[str]] = []
    try:
        found.extend(reader)
    except csv.Error as error:
        raise csv.Error(f"row {len(found) + 1}: {error}") from error
    return found


def _fit(first: str, second: str, delimiter: str) -> tuple[int, bool]:
    """Number of cells in the first row, and whether the second row has as many."""
    cells = _cells(first, delimiter)
    return cells, cells == _cells(second, delimiter)


def _cells(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter), ()))
