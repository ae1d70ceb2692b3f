"""Class names as labels of plots: short, unique and without unprintable characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Columns of a label: a letter is one, a CJK character or an emoji two.
LONGEST = 30
_TAIL = 9


def shortened(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """The names, of which longer ones lose their middle; no two are equal.

    Args:
      names: Distinct names.
      longest: Columns that a name may have.

    Returns:
      One line of text for each. Blanks and control characters are a single blank, and what is not a
      character (a surrogate) is an escape.
    """
    short = [_cut(_one_line(name), longest) for name in names]
    return [f"{text} ({i + 1})" if short.count(text) > 1 else text for i, text in enumerate(short)]


def columns(text: str) -> int:
    """Width of a text in columns."""
    return sum(map(_width, text))


def _one_line(name: str) -> str:
    kinds = {c: unicodedata.category(c) for c in name}
    text = "".join(
        " " if kinds[c] == "Cc" else ascii(c)[1:-1] if kinds[c] == "Cs" else c for c in name
    )
    return " ".join(text.split()) or "?"


def _cut(text: str, longest: int) -> str:
    if columns(text) <= longest:
        return text
    tail = text[-_TAIL:]
    while columns(tail) > _TAIL:
        tail = tail[1:]
    head = text[: longest - _TAIL - 1]
    while columns(head) > longest - _TAIL - 1:
        head = head[:-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
