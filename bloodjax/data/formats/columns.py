"""Which columns of a table mean what: found by their names, or stated as "path=image_id,label=dx".

A table needs a column of paths and, to train or to evaluate, one of labels or several one-hot
columns. Columns of splits, groups and weights are optional.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Collection, Sequence

from bloodjax.data import names
from bloodjax.errors import UserError, did_you_mean

PATH, LABEL, SPLIT, GROUP, WEIGHT = KINDS = ("path", "label", "split", "group", "weight")
# Between the names of one-hot columns, and between a kind and its columns.
_PLUS, _IS = "+", "="
FORM = f"KIND=COLUMN joined by commas, such as path=image_id,label=dx; kinds are {', '.join(KINDS)}"

# Names of the columns of each kind, without separators and in lower case. If a table has several
# of one kind, the user states which.
_NAMES = {
    PATH: (
        *("path", "image", "file", "filename", "imageid", "imagepath", "imagename", "imagefile"),
        *("imagefilename", "filepath", "fname", "img", "imgid", "imgpath", "imgname", "imgfile"),
        *("picture", "photo", "images", "files", "filenames", "paths"),
    ),
    LABEL: (
        *("label", "labels", "class", "classes", "dx", "diagnosis", "category", "target"),
        *("celltype", "celltypes", "classname", "labelname", "classlabel", "cellclass"),
    ),
    SPLIT: ("split", "subset", "partition", "set", "datasplit", "datasetsplit"),
    GROUP: (
        *("group", "groupid", "patient", "patientid", "subject", "subjectid", "slide", "slideid"),
        *("case", "caseid", "lesion", "lesionid", "donor", "donorid", "specimen", "specimenid"),
    ),
    WEIGHT: ("weight", "weights", "sampleweight", "sampleweights"),
}
# Names that are less sure: they count if there is no other of the kind.
_WEAK = {PATH: ("name", "id", "isicid", "uid", "key"), LABEL: ("type", "y", "groundtruth", "gt")}
_BINARY = {"0": False, "1": True, "false": False, "true": True}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Positions of the columns of each kind; None or () for a kind that the table lacks.

    Attributes:
      path: The column of images.
      label: The column of labels, or several one-hot columns.
      split: The column of splits.
      group: The column of groups.
      weight: The column of weights.
      details: Facts for `Reading.details`.
    """

    path: int
    label: tuple[int, ...] = ()
    split: int | None = None
    group: int | None = None
    weight: int | None = None
    details: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        """The positions of all of them."""
        single = (self.path, self.split, self.group, self.weight)
        return (*self.label, *(column for column in single if column is not None))

    @property
    def is_one_hot(self) -> bool:
        """Whether the labels are in several columns."""
        return len(self.label) > 1


def parse(text: str) -> dict[str, str]:
    """Kind -> column, or several joined by "+", of a text such as "path=image_id,label=dx".

    A column whose name has a comma is put in double quotes with its kind, as in
    `"label=type, cell"`.

    Raises:
      ValueError: The text has another form, or a kind occurs twice.
    """
    if not text.strip():
        return {}
    try:
        entries = next(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    stated: dict[str, str] = {}
    for entry in entries:
        kind, sign, column = (part.strip() for part in entry.partition(_IS))
        if not sign or kind not in KINDS or kind in stated or (kind == PATH and not column):
            raise ValueError(f"{entry!r} is not {FORM}")
        stated[kind] = column
    return stated


def check(text: str, where: str) -> str:
    """Returns `text`.

    Raises:
      UserError: `parse` raises an error; the message starts with `where`.
    """
    try:
        parse(text)
    except ValueError:
        raise UserError(f"{where}={text}: expected {FORM}") from None
    return text


def check_flag(text: str | None) -> str | None:
    """The value of the flag `--columns`, after `check`; None if it is not given."""
    return None if text is None else check(text, "--columns")


def find(
    where: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: str = "",
    *,
    needs_labels: bool = True,
    optional: Collection[str] = (),
) -> Columns:
    """Finds the columns of each kind.

    Args:
      where: The table, for messages.
      header: Names of the columns.
      rows: Cells of each row, by which one-hot columns are known.
      text: What the user states, see `parse`.
      needs_labels: Whether labels are needed. If not, only paths and groups are found.
      optional: Kinds of which a stated column may be missing; it is then found by its name.

    Raises:
      UserError: A column is missing, or there are several of one kind.
    """
    _check_distinct(where, header)
    forms = {names.form(name) for name in header}
    stated = {
        kind: column
        for kind, column in parse(text).items()
        if kind not in optional or not column or names.form(column) in forms
    }
    found = {}
    for kind in KINDS if needs_labels else (PATH, GROUP):
        if kind in stated:
            found[kind] = _stated(where, header, kind, stated[kind])
        else:
            found[kind] = _by_name(where, header, kind)
    if not found[PATH]:
        raise UserError(
            f"{where}: has no column of images, only {_shown(header)}; expected path, image, file, "
            f"filename or image_id, or {_how(PATH)}"
        )
    empty: list[int] = []
    if needs_labels and not found[LABEL]:
        taken = {position for each in found.values() for position in each}
        found[LABEL], empty = _one_hot(where, header, rows, taken)
    shown = ", ".join(
        f"{kind}={_PLUS.join(header[i] for i in found[kind])}" for kind in found if found[kind]
    )
    details = [f"columns {shown}"]
    details += [f"no image of {_shown([header[i] for i in empty])}"] if empty else []
    single = {k: found[k][0] for k in (SPLIT, GROUP, WEIGHT) if found.get(k)}
    return Columns(found[PATH][0], found.get(LABEL, ()), **single, details=tuple(details))


def by_name(where: str, header: Sequence[str], kind: str) -> str:
    """The column whose name is one of those of a kind; "" if there is none.

    Raises:
      UserError: There are several.
    """
    found = _by_name(where, header, kind)
    return header[found[0]] if found else ""


def class_of(where: str, header: Sequence[str], row: Sequence[str], columns: Columns) -> str:
    """The class of a row with one-hot columns: the name of the one with a 1.

    Args:
      where: The table and the row, for messages.
      header: Names of the columns.
      row: Cells of the row.
      columns: Which columns mean what.

    Raises:
      UserError: A cell is neither 0 nor 1, or not exactly one is 1.
    """
    hot = []
    for i in columns.label:
        value = _binary(row[i])
        if value is None:
            raise UserError(f"{where}, column {header[i]}: {row[i]!r}, expected 0 or 1")
        if value:
            hot.append(i)
    if len(hot) != 1:
        what = f"a 1 in {_shown([header[i] for i in hot])}" if hot else "no 1"
        shown = _PLUS.join(header[i] for i in columns.label[:12])
        raise UserError(f"{where}, columns {shown}: {what}, expected exactly one 1")
    return names.tidy(header[hot[0]])


def _check_distinct(where: str, header: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(header, 1):
        if name and name in seen:
            raise UserError(f"{where}: row 1, column {i}: {name} is there twice, expected it once")
        seen.add(name)


def _stated(where: str, header: Sequence[str], kind: str, text: str) -> tuple[int, ...]:
    wanted = [text] if text in header or kind != LABEL else text.split(_PLUS)
    wanted = [name.strip() for name in wanted if name.strip()]
    known = names.match(wanted, header)
    for name in wanted:
        if name not in known:
            raise UserError(
                f"{where}: has no column {name} (config.data.columns or --columns), "
                f"{did_you_mean(name, [each for each in header if each])}"
            )
    positions = tuple(header.index(known[name]) for name in wanted)
    if len(set(positions)) < len(positions):
        raise UserError(f"{where}: {kind}={text} names a column twice, expected it once")
    return positions


def _by_name(where: str, header: Sequence[str], kind: str) -> tuple[int, ...]:
    for known in (_NAMES[kind], _WEAK.get(kind, ())):
        found = [i for i, name in enumerate(header) if _form(name) in known]
        if len(found) > 1:
            shown = " and ".join(header[i] for i in found)
            raise UserError(
                f"{where}: the columns {shown} could each be the {kind}; expected one, or "
                f"{_how(kind, header[found[0]])}"
            )
        if found:
            return tuple(found)
    return ()


def _one_hot(
    where: str, header: Sequence[str], rows: Sequence[Sequence[str]], taken: set[int]
) -> tuple[tuple[int, ...], list[int]]:
    """The columns of only 0 and 1, and those of them that have no 1."""
    binary = {
        i: [_binary(row[i]) for row in rows]
        for i, name in enumerate(header)
        if i not in taken and name and all(_binary(row[i]) is not None for row in rows)
    }
    filled = tuple(i for i, values in binary.items() if any(values))
    if len(filled) < 2 or not rows:
        raise UserError(
            f"{where}: has no column of labels, only {_shown(header)}; expected label, class or "
            f"dx, one-hot columns of 0 and 1, or {_how(LABEL)}"
        )
    return filled, [i for i in binary if i not in filled]


def _binary(cell: str) -> bool | None:
    return _BINARY.get(re.sub(r"[.,]0+$", "", cell.strip().casefold()))


def _how(kind: str, column: str = "NAME") -> str:
    return f"config.data.columns={kind}={column} (--columns={kind}={column}) to name it"


def _form(name: str) -> str:
    return re.sub(r"[\W_]+", "", names.form(name))


def _shown(header: Sequence[str]) -> str:
    return names.shown([name[:80] for name in header if name])
