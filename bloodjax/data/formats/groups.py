"""Tables that assign images to groups: `groups.csv`, with the columns name and group."""

from __future__ import annotations

import collections
import csv
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence

from bloodjax.data import names
from bloodjax.data.formats import delimited
from bloodjax.data.formats.archive import Archive
from bloodjax.errors import UserError

TABLE = "groups.csv"
_COLUMNS = ("name", "group")
_DELIMITERS = ",;\t"
_WORDS = ("groups", "patients", "slides", "subjects", "patient_ids", "group_ids")
_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", "")
_SIMILAR = 0.75  # of difflib's ratio: "gruops" is 0.83 like "groups"


@dataclasses.dataclass(frozen=True)
class Groups:
    """What the tables of a source say.

    Attributes:
      group_of: Path of an image -> its group; images without a group are missing.
      details: Facts for `Reading.details`.
      warnings: Lines for the log.
      partly: A line for the log if not all images have a group; "" if they have.
    """

    group_of: Mapping[str, str]
    details: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    partly: str = ""


def tables(files: Sequence[str]) -> tuple[str, ...]:
    """Those of `files` that are tables of groups, or look as if they were meant to be."""
    return tuple(path for path in files if _is_table(path) or _resembles(path))


def read(path: pathlib.Path, archive: Archive, images: Sequence[str], root: str = "") -> Groups:
    """Reads all tables of groups in an archive.

    Names in a table are relative to its own folder, or else to a folder above it or to `root`. They
    are matched to images if only the form differs: case, Unicode form, "\\" for "/", blanks at the
    ends.

    Args:
      path: The folder or zip, for messages.
      archive: The same, opened.
      images: Path of each image.
      root: The folders around all images, as "a/b/", or "".

    Raises:
      UserError: A table cannot be read, names a file that is not there, or an image has two groups.
    """
    found_tables = tables(archive.files)
    if not found_tables:
        return Groups({})
    group_of: dict[str, str] = {}
    details, warnings = [], []
    known = _Names(images, archive.files, root)
    for table in found_tables:
        try:
            rows = _rows(archive.read(table), f"{path}: {table}")
        except (UserError, ValueError) as error:
            if _is_table(table) and isinstance(error, UserError):
                raise
            if _is_table(table):
                raise _unreadable(f"{path}: {table}", error) from error
            warnings.append(
                f"{path}: {table} is not read; a table of groups is called {TABLE} and has the "
                "columns name,group"
            )
            continue
        found = _assign(f"{path}: {table}", table, rows, known)
        for image, group in found.items():
            if names.form(group_of.setdefault(image, group)) != names.form(group):
                raise UserError(
                    f"{path}: {table} puts {image} into the group {group}, and another table into "
                    f"{group_of[image]}; expected one group"
                )
        plain = table.rpartition("/")[2] == TABLE
        details.append(table if plain else f"{table} taken as {TABLE}")
    group_of, merged = _merge(group_of)
    if not details:
        return Groups(group_of, (), tuple(warnings))
    without = len(images) - len(group_of)
    n = len(set(group_of.values()))
    fact = f"{names.shown(details, 3)}: {n} group{'s' if n != 1 else ''}"
    if merged:
        fact += f", {merged} matched in another form"
    partly = ""
    if without:
        fact += f", none for {without} of {len(images)} images"
        partly = (
            f"{path}: {details[0]} gives no group to {without} of {len(images)} images; they may "
            "be on another side of a split than images of the same patient or slide"
        )
    return Groups(group_of, (fact,), tuple(warnings), partly)


def is_beside(path: pathlib.Path) -> bool:
    """Whether there is a table of groups beside a source, where it is not read."""
    return (path.absolute().parent / TABLE).is_file()


def clean(group: str) -> str:
    """A group's key as it is compared: without blanks at its ends, "" for a missing value.

    A whole number that a program has written as a float is a whole number again.
    """
    key = names.tidy(group).strip()
    if names.is_missing(key):
        return ""
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", key)


def of_column(cells: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The group of each image from a column or an array; groups of one form are one.

    Returns:
      The keys, "" for an image without a group, and a fact for `Reading.details`.
    """
    cleaned = {cell: clean(cell) for cell in set(cells)}
    keys, _ = _merge({str(i): cleaned[cell] for i, cell in enumerate(cells)})
    n, without = len({*keys.values()} - {""}), sum(not key for key in keys.values())
    fact = f"{n:,} group{'s' if n != 1 else ''}"
    if without:
        fact += f", none for {without:,} of {len(cells):,} images"
    return [*keys.values()], (fact,)


class _Names:
    """Finds the image that a row of a table names."""

    def __init__(self, images: Sequence[str], files: Sequence[str], root: str):
        self._root = root
        self._images = set(images)
        self._files = {names.path_form(path) for path in files}
        self._by_form: dict[str, list[str]] = collections.defaultdict(list)
        for image in images:
            self._by_form[names.path_form(image)].append(image)

    def find(self, name: str, folder: str) -> str | None:
        """The image; None if the name is that of a file which is not used.

        Args:
          name: Name in a table.
          folder: The table's folder, as "a/b" or "".

        Raises:
          LookupError: There is no such file, or several that differ only in form.
        """
        above = folder.split("/") if folder else []
        name = re.sub(r"^(\./)+", "", name.replace("\\", "/")).lstrip("/")
        paths = ["/".join([*above[:n], name]) for n in range(len(above), -1, -1)]
        paths.append(self._root + name)
        for path in paths:
            if path in self._images:
                return path
        for path in paths:
            alike = self._by_form.get(names.path_form(path), [])
            if len(alike) == 1:
                return alike[0]
            if alike:
                raise LookupError(f"{', '.join(alike[:2])} differ only in form")
        if any(names.path_form(path) in self._files for path in paths):
            return None
        raise LookupError("there is no such image")


def _assign(
    where: str, table: str, rows: Sequence[tuple[str, str]], known: _Names
) -> dict[str, str]:
    folder = table.rpartition("/")[0]
    group_of: dict[str, str] = {}
    for name, group in rows:
        try:
            image = known.find(name, folder)
        except LookupError as error:
            raise UserError(f"{where} names {name}, but {error}") from None
        if image is None or not group:
            continue
        if names.form(group_of.setdefault(image, group)) != names.form(group):
            raise UserError(
                f"{where} names {image} with the groups {group_of[image]} and {group}; expected "
                "one group"
            )
    return group_of


def _merge(group_of: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """Groups of the same form become one; also the number of keys that were changed."""
    key_of = names.most_frequent(collections.Counter(group_of.values()))
    merged = {image: key_of[group] for image, group in group_of.items()}
    return merged, sum(group != key for group, key in key_of.items())


def _rows(content: bytes, where: str) -> list[tuple[str, str]]:
    """Name and group of each row; the columns may be in either order."""
    try:
        text = delimited.decode(content).text
    except UnicodeError as error:
        raise _unreadable(where, error) from error
    for delimiter in _DELIMITERS:
        try:
            table = delimited.rows(text, delimiter)
        except csv.Error as error:
            raise _unreadable(where, error) from error
        rows = [_two_columns(row) for row in table if any(cell.strip() for cell in row)]
        header = [names.form(cell) for cell in rows[0]] if rows else []
        if sorted(header) == sorted(_COLUMNS):
            break
    else:
        raise UserError(f"{where} does not have just the columns name,group")
    name, group = header.index("name"), header.index("group")
    found = []
    for row in rows[1:]:
        if len(row) != 2:
            raise UserError(f"{where} does not have just the columns name,group")
        found.append((row[name].strip(), clean(row[group])))
    return found


def _two_columns(row: list[str]) -> list[str]:
    """The row without empty columns after the second."""
    return row if any(cell.strip() for cell in row[2:]) else row[:2]


def _unreadable(where: str, error: Exception) -> UserError:
    return UserError(f"{where} cannot be read as CSV in UTF-8 ({error})")


def _is_table(path: str) -> bool:
    return names.form(path.rpartition("/")[2]) == TABLE


def _resembles(path: str) -> bool:
    """Whether a file's name is nearly `groups.csv`, or that of a table of patients or slides."""
    name = names.form(path.rpartition("/")[2])
    stem, dot, suffix = name.partition(".")
    if f"{dot}{suffix}" not in (*_SUFFIXES, ".csv.txt", ".csv.csv"):
        return False
    if not dot and stem[-1:].isdigit():  # slide1 and patient 3 are images without a suffix
        return False
    stem = re.sub(r"[-_ ]*(\(?[0-9]+\)?|copy|kopie|copie)$", "", stem).replace(" ", "_")
    if not stem or stem.startswith("grouping"):
        return False
    return any(
        difflib.SequenceMatcher(None, stem, word).ratio() >= _SIMILAR
        for word in _WORDS
        if abs(len(stem) - len(word)) <= 3
    )
