"""What a command is about to compute on, in three lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.data.dataset import Dataset
from bloodjax.data.reading import LeftOut, merge

# Names that a line lists before it says how many more there are.
_MAX_CLASSES = 200


def lines(parts: Mapping[str, Dataset], left_out: Sequence[LeftOut] = ()) -> list[str]:
    """States the sources, the classes, and what was left out.

    Args:
      parts: Images of each part, such as "train" and "test". A dataset without class names is
        unlabelled.
      left_out: What was left out after the sources had been read, such as junk.

    Returns:
      Three lines: the sources and how they were read; the classes in label order with the number
      of images in each part; what was left out and why, by class.
    """
    return [_sources(parts), _classes(parts), _left_out(parts, left_out)]


def _sources(parts: Mapping[str, Dataset]) -> str:
    names_of: dict = {}
    for name, dataset in parts.items():
        names_of.setdefault(dataset.reading, []).append(name)
    read = []
    for reading, names in names_of.items():
        how = "; ".join(filter(None, (reading.layout, *reading.details)))
        source = reading.spec or "images in memory"
        used_as = ", ".join(name for name in names if name != source)
        text = f"{used_as} from {source}" if used_as else source
        read.append(f"{text} ({how})" if how else text)
    return "data: " + ", ".join(read)


def _classes(parts: Mapping[str, Dataset]) -> str:
    # Sources that are only audited may have different classes.
    names = list(dict.fromkeys(name for dataset in parts.values() for name in dataset.classes))
    if not names:
        return "images: " + _counts([len(dataset) for dataset in parts.values()])
    counts = np.zeros((len(names), len(parts)), int)
    row = {name: i for i, name in enumerate(names)}
    for column, dataset in enumerate(parts.values()):
        for name, n in zip(dataset.classes, dataset.class_counts.tolist(), strict=True):
            counts[row[name], column] += n
    shown = [f"{_name(n)} {_counts(c)}" for n, c in zip(names, counts[:_MAX_CLASSES], strict=False)]
    if len(names) > _MAX_CLASSES:
        shown.append(f"and {len(names) - _MAX_CLASSES} more")
    head = f"{len(names)} classes" if len(names) > 1 else "1 class"
    by_part = f" by {'/'.join(parts)}" if len(parts) > 1 else ""
    if not any(dataset.is_multi_label for dataset in parts.values()):
        return f"{head}{by_part}: {', '.join(shown)}; all {_counts(counts.sum(0))}"
    images = _counts([len(dataset) for dataset in parts.values()])
    without = _counts([int((d.strata == len(d.classes)).sum()) for d in parts.values()])
    return f"{len(names)} labels{by_part}: {', '.join(shown)}; none {without}; images {images}"


def _name(name: str) -> str:
    """The name of a class before a number; one without letters ends in a colon."""
    return name if any(map(str.isalpha, name)) else f"{name}:"


def _counts(counts) -> str:
    return "/".join(f"{count:,}" for count in counts)


def _left_out(parts: Mapping[str, Dataset], left_out: Sequence[LeftOut]) -> str:
    # Parts of one source share its reading, whose entries count once.
    readings = dict.fromkeys(dataset.reading for dataset in parts.values())
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in merge([e for reading in readings for e in reading.left_out] + list(left_out)):
        by_reason.setdefault(entry.reason, []).append(entry)
    if not by_reason:
        return "left out: nothing"
    return "left out: " + "; ".join(map(_reason, by_reason.values()))


def _reason(entries: Sequence[LeftOut]) -> str:
    text = f"{sum(entry.count for entry in entries):,} {entries[0].reason}"
    labelled = [f"{_name(entry.label)} {entry.count:,}" for entry in entries if entry.label]
    if not labelled:
        return text
    more = len(labelled) - _MAX_CLASSES
    shown = labelled[:_MAX_CLASSES] + ([f"and {more} more classes"] if more > 0 else [])
    return f"{text} ({', '.join(shown)})"
