"""Labels of arrays: what their numbers or texts stand for."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Shaped

from bloodjax.data import names
from bloodjax.data.dataset import SEPARATOR
from bloodjax.errors import UserError

NAMED = "names"  # a value of `Labels.first`
# What is wrong with a label for which `is_missing` holds.
MISSING = (
    "stands for a missing label, expected a class; if a class is called so, list all classes in "
    "config.data.classes (--classes), or rename it"
)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels as indices of classes.

    Attributes:
      by_key: Key of an array -> class index of each of its images, or from `read_several` 1 for
        each label that an image has and 0 for each other.
      classes: Class names in label order.
      details: Facts for `Reading.details`.
      first: Which number the first class has, "0" or "1"; `NAMED` if the class names state their
        numbers; "" if labels are no numbers.
    """

    by_key: Mapping[str, Int32[np.ndarray, "_ ..."]]
    classes: tuple[str, ...]
    details: tuple[str, ...] = ()
    first: str = ""


def read(
    where: object,
    arrays: Mapping[str, np.ndarray],
    own: Sequence[str] | None,
    given: Sequence[str],
    default: Sequence[str],
    *,
    positional: bool,
    first: str = "",
) -> Labels:
    """Reads labels that are numbers, one-hot rows, booleans or texts.

    Numbers are class indices, from 0 or, if that is the only way to read them, from 1. Of a source
    that lacks some of the classes, they may be either, so `first` says what the run's are.

    Args:
      where: The source, for messages.
      arrays: Key of each array -> labels, of shape (n,), (n, 1), or (n, classes) if one-hot.
      own: Class names that the source itself lists in label order, or None.
      given: Class names in label order that the user or a run states, or empty.
      default: Names of as many classes as the labels have if there are no others, or empty: these
        are class_0 and so on.
      positional: Whether numbers are positions in `given`. If not, they must be so by `default`,
        or the names must state the numbers, as "3" and "class_3" do.
      first: `Labels.first` of the images that a run was trained on, or "" if it is not known.

    Raises:
      UserError: Labels are of another kind, out of range, or may stand for several classes.
    """
    parsed = {key: _parse(f"{where}: {key}", array) for key, array in arrays.items()}
    kinds = {each.kind for each in parsed.values()}
    if len(kinds) > 1:
        raise UserError(f"{where}: labels are {' and '.join(sorted(kinds))}, expected one kind")
    if not any(len(each.values) for each in parsed.values()):
        raise UserError(f"{where}: {', '.join(arrays)} is empty, expected a label for each image")
    details = tuple(dict.fromkeys(each.kind for each in parsed.values() if each.kind != "numbers"))
    values = {key: each.values for key, each in parsed.items()}
    if kinds == {"text labels"}:
        return _texts(where, values, own, given, details)
    count = max(each.columns for each in parsed.values())
    numbers = np.concatenate([*values.values()])
    smallest, largest = int(numbers.min()), int(numbers.max())
    if kinds == {"labels of True and False"} and own is None:
        if not given:
            return Labels(values, ("False", "True"), details)
        default = ("False", "True")
    classes = own or _of_numbers(
        where, numbers, given, default, count, positional=positional, first=first
    )
    if isinstance(classes, dict):  # the names state the numbers
        table = {value: given.index(name) for value, name in classes.items()}
        mapped = {
            k: np.array([table[v] for v in each.tolist()], np.int32) for k, each in values.items()
        }
        return Labels(mapped, tuple(given), details, NAMED)
    n = len(classes)
    if count and count != n:
        raise UserError(
            f"{where}: one-hot labels have {count} columns, expected {n} ({names.shown(classes)}); "
            f"{_HOW}"
        )
    are_numbers = kinds == {"numbers"}
    if are_numbers and smallest >= 1 and ((largest == n and smallest == 1) or first == "1"):
        _check_range(where, values, 1, classes)
        return Labels(
            {key: each - np.int32(1) for key, each in values.items()},
            tuple(classes),
            (*details, f"labels 1 to {n}"),
            "1",
        )
    if are_numbers and first == "1" and own is None:
        _check_range(where, values, 1, classes)
    _check_range(where, values, 0, classes)
    return Labels(values, tuple(classes), details, "0" if are_numbers else "")


def _check_range(
    where: object, values: Mapping[str, np.ndarray], first: int, classes: Sequence[str]
) -> None:
    """Raises a UserError unless all labels are among the numbers of the classes from `first` on."""
    last = first + len(classes) - 1
    for key, each in values.items():
        wrong = np.flatnonzero((each < first) | (each > last))
        if len(wrong):
            raise UserError(
                f"{where}: {key}[{wrong[0]}] is {each[wrong[0]]}, expected {first}..{last} "
                f"({names.shown(classes)}{', from 1 on as in training' if first else ''}); {_HOW}"
            )


def read_several(
    where: object,
    arrays: Mapping[str, np.ndarray],
    own: Sequence[str] | None,
    given: Sequence[str],
    default: Sequence[str],
) -> Labels:
    """Reads labels of images that can have several, or none: a row of 0 and 1 for each image.

    Args:
      where: The source, for messages.
      arrays: Key of each array -> labels of shape (n, labels).
      own: Names of the labels that the source itself lists, or None.
      given: Names of the labels that the user or a run states, or empty.
      default: Names if there are no others and there are as many, or empty: these are class_0 and
        so on.

    Raises:
      UserError: Labels have another shape or other values, or a number of names does not match.
    """
    values = {key: _parse_several(f"{where}: {key}", array) for key, array in arrays.items()}
    widths = {key: each.shape[1] for key, each in values.items()}
    columns = next(iter(widths.values()))
    for key, width in widths.items():
        if width != columns:
            raise UserError(f"{where}: {key} has {width} columns of labels, expected {columns}")
    classes = tuple(own or given) or (tuple(default) if len(default) == columns else ())
    classes = classes or names.numbered(columns)
    if len(classes) != columns:
        raise UserError(
            f"{where}: has {columns} columns of labels, expected {len(classes)} "
            f"({names.shown(classes)}); {_HOW}"
        )
    if joined := sorted(name for name in classes if SEPARATOR in name):
        raise UserError(
            f"{where}: a label is called {joined[0]}, expected a name without {SEPARATOR}, which "
            "joins the labels of an image"
        )
    return Labels(values, classes, ("each image has any number of labels",))


def _parse_several(where: str, array: np.ndarray) -> Int32[np.ndarray, "_ _"]:
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "iufb":
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}, expected 0 or 1 for each label of "
            "each image, of shape (N, labels)"
        )
    wrong = np.argwhere((array != 0) & (array != 1))
    if len(wrong):
        i, j = wrong[0].tolist()
        raise UserError(f"{where}[{i}, {j}] is {array[i, j]}, expected 0 or 1")
    return array.astype(np.int32)


_HOW = "name other classes with config.data.classes=a,b,c, or --classes=a,b,c in audit and pack"


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """One array: its values, what kind they are, and the number of columns of one-hot rows."""

    values: np.ndarray
    kind: str
    columns: int = 0


def _parse(where: str, array: np.ndarray) -> _Parsed:
    n = len(array) if array.ndim else 0
    if array.ndim == 2 and array.shape[1] > 1:
        return _one_hot(where, array)
    if array.shape not in ((n,), (n, 1)) or array.dtype.kind not in "iufbUS":
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}, expected an integer or a text for "
            "each image, of shape (N,) or (N, 1), or one-hot rows (N, classes)"
        )
    array = array.reshape(n)
    if array.dtype.kind in "US":
        return _Parsed(texts(where, array), "text labels")
    if array.dtype.kind == "b":
        return _Parsed(array.astype(np.int32), "labels of True and False")
    # NaN compares as False, so it is rejected too.
    valid = (array >= 0) & (array <= np.iinfo(np.int32).max) & (array == np.floor(array))
    if not valid.all():
        i = int(np.argmin(valid))
        raise UserError(f"{where}[{i}] is {array[i]}, expected an integer of at least 0")
    return _Parsed(array.astype(np.int32), "numbers")


def _one_hot(where: str, array: np.ndarray) -> _Parsed:
    found = f"{where} is {array.dtype} of shape {array.shape}"
    if array.dtype.kind not in "iufb":
        raise UserError(f"{found}, expected one label for each image, of shape (N,) or (N, 1)")
    ones = array == 1
    binary = (ones | (array == 0)).all(axis=1)
    per_row = ones.sum(axis=1)
    wrong = np.flatnonzero(~binary | (per_row != 1))
    if len(wrong):
        i = int(wrong[0])
        row = f"{per_row[i]} labels" if binary[i] else "values other than 0 and 1"
        raise UserError(
            f"{found}, where row {i} has {row}; expected one class for each image, of shape (N,) "
            "or (N, 1), or one-hot rows with a single 1 (config.data.task=multi-label allows any "
            "number)"
        )
    return _Parsed(ones.argmax(axis=1).astype(np.int32), "one-hot labels", array.shape[1])


def texts(where: str, array: Shaped[np.ndarray, " n"]) -> np.ndarray:
    """Texts or bytes of UTF-8 as texts without blanks at their ends.

    Raises:
      UserError: Bytes are not UTF-8, or a text is empty.
    """
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeError as error:
            raise UserError(f"{where} has bytes that are not UTF-8 ({error})") from error
    tidied = {text: names.tidy(text) for text in set(array.tolist())}
    if not all(text.strip() for text in tidied.values()):
        i = next(i for i, text in enumerate(array.tolist()) if not tidied[text].strip())
        raise UserError(f"{where}[{i}] is empty, expected a name")
    return np.array([tidied[text] for text in array.tolist()], dtype=np.str_)


def _texts(
    where: object,
    values: Mapping[str, np.ndarray],
    own: Sequence[str] | None,
    given: Sequence[str],
    details: tuple[str, ...],
) -> Labels:
    _refuse_missing(where, values, own or given)
    counts = collections.Counter(text for each in values.values() for text in each.tolist())
    # Texts of one form are one class, as folders are.
    classes = tuple(own or names.in_order({*names.most_frequent(counts).values()}))
    name_of = names.match(sorted(counts), classes)
    unknown = sorted(counts.keys() - name_of.keys())
    if unknown:
        raise UserError(
            f"{where}: labels contain {unknown[0]}, which classes does not list "
            f"({names.shown(classes)})"
        )
    index = {name: i for i, name in enumerate(classes)}
    return Labels(
        {
            key: np.array([index[name_of[text]] for text in each.tolist()], np.int32)
            for key, each in values.items()
        },
        classes,
        (*details, *names.taken_as(name_of)),
    )


def _refuse_missing(
    where: object, values: Mapping[str, np.ndarray], classes: Sequence[str]
) -> None:
    """Refuses labels that programs write for a missing value, if no class is called so."""
    for key, each in values.items():
        for i, text in enumerate(each.tolist()):
            if is_missing(text, classes):
                raise UserError(f"{where}: {key}[{i}] is {text}, which {MISSING}")


def is_missing(text: str, classes: Sequence[str]) -> bool:
    """Whether a label is what programs write for a missing value, and no class is called so."""
    return names.is_missing(text) and names.form(text) not in map(names.form, classes)


def _of_numbers(
    where: object,
    numbers: np.ndarray,
    given: Sequence[str],
    default: Sequence[str],
    count: int,
    *,
    positional: bool,
    first: str,
) -> Sequence[str] | dict[int, str]:
    """Class names in label order; or number -> name, if the names state the numbers."""
    found = np.unique(numbers).tolist()
    needed = count or (found[-1] + 1)
    if not given:
        if default:
            return default
        # Every class must have an image, so there are at most as many classes as images.
        if found[:1] == [1] and len(found) == needed - 1:
            return names.numbered(needed)[1:]
        return names.numbered(min(needed, len(numbers)))
    stated = {names.number(name): name for name in given}
    is_stated = None not in stated and len(stated) == len(given) and set(found) <= stated.keys()
    if first == NAMED and not set(found) <= stated.keys():
        other = min(set(found) - stated.keys())
        raise UserError(
            f"{where}: has the label {other}, expected one of {names.shown(given)}, which are the "
            "labels of training"
        )
    if tuple(given) == tuple(default) or (positional and first and first != NAMED):
        return given
    if is_stated and not count:
        return stated
    if positional:
        return given
    raise UserError(
        f"{where}: names no classes, and its labels {found[0]}..{found[-1]} need not be in the "
        f"order of {names.shown(given)}; expected an array classes with the names in label order, "
        "or text labels"
    )
