"""How a source was read: what the commands print before they compute."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from bloodjax.data.facts import NO_IMAGES, Tally
from bloodjax.data.options import ReadOptions


class LeftOut(NamedTuple):
    """Images or files of a source that are not used.

    Attributes:
      reason: Short phrase in the singular, such as "unreadable", "system file" or "junk".
      label: Name of the class that they would belong to; "" if they belong to none.
      count: How many there are, at least 1.
    """

    reason: str
    label: str
    count: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a source was read.

    Attributes:
      spec: The SPEC as given.
      layout: What the source was taken for, such as "class folders", "split and class folders"
        or "npz of images and labels".
      details: Further facts, a short phrase each, such as "12 of 16 bits" or "groups.csv: 7
        groups".
      left_out: What was not used, by reason and class.
      tally: What reading the images had to decide. `details` has it in words.
      first_label: Number of the first class, see `formats.labels.Labels.first`.
    """

    spec: str = ""
    layout: str = ""
    details: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    tally: Tally = NO_IMAGES
    first_label: str = ""

    def with_details(self, *texts: str) -> Reading:
        """A copy with more `details`; a text that is empty or known already adds nothing."""
        details = dict.fromkeys((*self.details, *filter(None, texts)))
        return dataclasses.replace(self, details=tuple(details))

    def with_tally(self, tally: Tally, options: ReadOptions) -> Reading:
        """A copy with what images that were read with `options` had to have decided."""
        return dataclasses.replace(self, tally=tally).with_details(*tally.phrases(options))

    def with_left_out(self, *entries: LeftOut) -> Reading:
        """A copy with more entries in `left_out`; counts of one reason and class are added."""
        return dataclasses.replace(self, left_out=merge((*self.left_out, *entries)))

    def joined(self, other: Reading) -> Reading:
        """How two sources were read whose images form one dataset."""
        if other == self or other == Reading():
            return self
        joined = dataclasses.replace(
            self,
            spec=_joined(self.spec, other.spec),
            layout=_joined(self.layout, other.layout),
            details=tuple(dict.fromkeys(self.details + other.details)),
            tally=self.tally.joined(other.tally),
            first_label=self.first_label or other.first_label,
        )
        return joined.with_left_out(*other.left_out)


def left_out_by_class(reason: str, names: Iterable[str]) -> tuple[LeftOut, ...]:
    """One entry for each class among `names`, the class name of each image that is left out."""
    return tuple(LeftOut(reason, name, n) for name, n in collections.Counter(names).items())


def merge(entries: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Adds the counts of entries with the same reason and class; the order is the first one's."""
    counts: dict[tuple[str, str], int] = {}
    for reason, label, count in entries:
        counts[reason, label] = counts.get((reason, label), 0) + count
    return tuple(LeftOut(*key, count) for key, count in counts.items())


def _joined(first: str, second: str) -> str:
    return " + ".join(dict.fromkeys(filter(None, (first, second))))
