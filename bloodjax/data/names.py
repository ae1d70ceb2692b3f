"""Names of classes, files and groups: which differ only in form, their order, lists of them.

Two names have the same form if they differ only in how a system writes them: as one or several
Unicode characters (a Mac's "é"), in case, or in blanks at the ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# Blanks of zero width, which `str.strip` keeps.
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_FOLD = re.compile(r"(fold|cv|split|part|batch)[-_ ]*[0-9]+")
# How programs write a missing value, as `form` gives it.
_MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "<na>", "#n/a", "nat"))
# Names that a source without class names of its own gets, see `numbered`.
_NUMBERED = re.compile(r"class_([0-9]{1,18})")


def tidy(name: str) -> str:
    """The name with composed characters (NFC) and without blanks at its ends."""
    composed = unicodedata.normalize("NFC", name)
    stripped = composed.strip().strip(_INVISIBLE).strip()
    return stripped or composed


def form(name: str) -> str:
    """A text that is equal for names of the same form."""
    return unicodedata.normalize("NFC", tidy(name).casefold())


def path_form(path: str) -> str:
    """A text that is equal for paths, with "/", whose parts have the same forms."""
    return "/".join(map(form, path.split("/")))


def is_missing(text: str) -> bool:
    """Whether a cell of a table is empty, or has a text that programs write for a missing value."""
    return form(text).strip() in _MISSING


def is_fold(name: str) -> bool:
    """Whether a group is a part of one source, such as "fold_1", and not a patient or a slide.

    Parts of two sources have nothing in common if they have the same name.
    """
    return _FOLD.fullmatch(form(name)) is not None


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts names: whole numbers first, by their value, then texts."""
    return tuple(sorted(names, key=_order))


def numbered(n: int) -> tuple[str, ...]:
    """Names of `n` classes that have none: class_0, class_1, ..."""
    return tuple(f"class_{i}" for i in range(n))


def are_numbered(names: Iterable[str]) -> bool:
    """Whether all names are such as `numbered` gives."""
    return all(_NUMBERED.fullmatch(name) for name in names)


def number(name: str) -> int | None:
    """The label that a class name states, as in "3" and "class_3"; None for any other name."""
    match = _NUMBERED.fullmatch(name)
    text = match.group(1) if match else name
    return int(text) if _NUMBER.fullmatch(text) else None


def match(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """For each of `names`, the one of `known` that is equal, or else the only one of its form.

    Names without such a counterpart are left out.
    """
    exact = set(known)
    by_form: dict[str, list[str]] = {}
    for name in known:
        by_form.setdefault(form(name), []).append(name)
    found = {}
    for name in names:
        alike = [name] if name in exact else by_form.get(form(name), [])
        if len(alike) == 1:
            found[name] = alike[0]
    return found


def most_frequent(counts: Mapping[str, int]) -> dict[str, str]:
    """For each name, the most frequent name of its form; the first when sorted, of several.

    Args:
      counts: Name -> how often it occurs. The order of the names does not matter.
    """
    best: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        best.setdefault(form(name), name)
    return {name: best[form(name)] for name in counts}


def taken_as(name_of: Mapping[str, str]) -> tuple[str, ...]:
    """Facts for `Reading.details`, such as "B cell taken as b cell", of names that were replaced.

    Args:
      name_of: Name in the source -> the name that it gets.
    """
    return tuple(f"{name} taken as {other}" for name, other in name_of.items() if name != other)


def shown(names: Sequence[str], most: int = 12) -> str:
    """At most `most` of the names, joined by commas, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if _NUMBER.fullmatch(name) else (1, 0, name)
