"""What is wrong with the images: junk, duplicates, contradicting labels, leakage.

Nothing here knows a file, an order or a junk frame in advance: every finding comes from comparing
the images with one another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from bloodjax.data import images, lazy
from bloodjax.data.audit import duplicates, outliers
from bloodjax.data.dataset import Dataset

# No kin within this many times the distance of two random images: no cell like the others. The
# oddest of 13,671 blood cells reaches 1.1 (1.5 in random subsets of 500, where a rare cell may be
# the only one of its kind); photographs start at 1.7, drawings, print and noise at 2.3.
_ODD = 1.65
# A frame repeated more often than chance explains need only be as odd as a random pair.
_ODD_IF_REPEATED = 1.0
_CHANCE = 0.01

_LEFT_OUT = (
    "near duplicates: {:,} images are more than the {:,} that are compared pair by pair; "
    "duplicates, conflicts and leaks are of equal pixels"
)


class AuditedImage(NamedTuple):
    """One image of the data sets that were audited.

    Attributes:
      key: which data set.
      index: where in it.
      name: its name there; with the key in front where several data sets were audited.
      label: the name of its class.
      split: the part its source puts it in, or "".
    """

    key: str
    index: int
    name: str
    label: str
    split: str


Group = tuple[AuditedImage, ...]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The findings over `n` images; groups in the order of their first image.

    Junk is in `junk` alone: copies of a junk frame are no duplicates, conflicts or leaks.

    Attributes:
      n: images audited.
      junk: images that are no cells like the others.
      junk_reasons: why, for each of `junk`.
      exact_duplicates: groups with the same pixels.
      near_duplicates: groups of one image in two or more versions, see `duplicates.near_ids`;
        exact copies of a version are in its group too.
      label_conflicts: groups of either kind whose labels differ.
      leakage: groups of either kind that span data sets or splits.
      left_out: what was not looked for, in a line each.
    """

    n: int
    junk: Group
    junk_reasons: tuple[str, ...]
    exact_duplicates: tuple[Group, ...]
    near_duplicates: tuple[Group, ...]
    label_conflicts: tuple[Group, ...]
    leakage: tuple[Group, ...]
    left_out: tuple[str, ...] = ()

    def junk_in(self, key: str) -> list[int]:
        """Indices of the junk in the data set `key`."""
        return [image.index for image in self.junk if image.key == key]

    def duplicates_in(self, key: str) -> list[list[int]]:
        """Index groups of exact and near duplicates within the data set `key`."""
        found = (*self.exact_duplicates, *self.near_duplicates)
        within = ([image.index for image in group if image.key == key] for group in found)
        return [group for group in within if len(group) > 1]

    def to_json(self) -> dict:
        """The content of `audit.json`: `n`, names, and groups of names."""

        def names(group: Group) -> list[str]:
            return [image.name for image in group]

        return {
            "n": self.n,
            "junk": names(self.junk),
            "junk_reasons": dict(zip(names(self.junk), self.junk_reasons, strict=True)),
            "exact_duplicates": [names(group) for group in self.exact_duplicates],
            "near_duplicates": [names(group) for group in self.near_duplicates],
            "label_conflicts": [
                {"names": names(group), "labels": [image.label for image in group]}
                for group in self.label_conflicts
            ],
            "leakage": [names(group) for group in self.leakage],
            "left_out": list(self.left_out),
        }


def audit(datasets: Mapping[str, Dataset]) -> Audit:
    """Compares all images of `datasets`, by part or source name, with one another.

    Junk is an image that is unlike all others (`outliers.oddness` above 1.65), or a frame that is
    repeated more often than chance explains and is fairly unlike them (above 1). An image repeated
    as often that does look like the others, as after oversampling, is a group of duplicates.

    Of more than 50,000 images near duplicates are not looked for, which would take hours and
    gigabytes: duplicates, conflicts and leaks are exact ones then, and an image is odd that is
    unlike 10,000 others, drawn by chance. `left_out` says so.
    """
    pictures = _images(datasets)
    if not pictures:
        return Audit(0, (), (), (), (), (), ())
    many = len(pictures) > outliers.MOST
    exact, looks = _seen(list(datasets.values()), many)
    distinct, version = np.unique(exact, return_inverse=True)
    near = exact if many else duplicates.near_ids(looks[distinct])[version]
    _, first, frame, copies = np.unique(
        near, return_index=True, return_inverse=True, return_counts=True
    )
    odd = outliers.oddness_of(looks[first]) if many else outliers.oddness(looks[first])
    repeated = _more_than_chance(copies) & (odd > _ODD_IF_REPEATED)
    is_junk = ((odd > _ODD) | repeated)[frame]
    junk = np.flatnonzero(is_junk)

    def members(ids: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
        found = (group[~is_junk[group]] for group in duplicates.groups(ids))
        return [group for group in found if len(group) > 1]

    def listed(found: Sequence[Int[np.ndarray, " _"]]) -> tuple[Group, ...]:
        return tuple(tuple(pictures[i] for i in group) for group in found)

    alike = members(near)
    groups = listed(alike)
    return Audit(
        n=len(pictures),
        junk=tuple(pictures[i] for i in junk),
        junk_reasons=tuple(_reason(float(odd[f]), int(copies[f])) for f in frame[junk]),
        exact_duplicates=listed(members(exact)),
        near_duplicates=listed([group for group in alike if len(set(exact[group])) > 1]),
        label_conflicts=tuple(group for group in groups if len({one.label for one in group}) > 1),
        leakage=tuple(
            group for group in groups if len({(one.key, one.split) for one in group}) > 1
        ),
        left_out=(_LEFT_OUT.format(len(pictures), outliers.MOST),) if many else (),
    )


def _seen(
    datasets: Sequence[Dataset], many: bool
) -> tuple[Int[np.ndarray, " n"], UInt8[np.ndarray, "n 48 48 3"] | Float32[np.ndarray, "n 76"]]:
    """In one pass: what is the same image, and thumbnails, or of `many` images features."""
    looks = []

    def pictures() -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        for pixels in (dataset.images for dataset in datasets):
            for start in range(0, len(pixels), lazy.AT_ONCE):
                some = pixels[start : start + lazy.AT_ONCE]
                thumbnails = images.resize(some, duplicates.THUMBNAIL)
                looks.append(outliers.features(thumbnails) if many else thumbnails)
                yield from some

    return duplicates.exact_ids(pictures()), np.concatenate(looks)


def _images(datasets: Mapping[str, Dataset]) -> list[AuditedImage]:
    return [
        AuditedImage(
            key,
            index,
            f"{key}:{name}" if len(datasets) > 1 else name,
            dataset.classes[dataset.labels[index]],
            dataset.splits[index],
        )
        for key, dataset in datasets.items()
        for index, name in enumerate(dataset.names)
    ]


def _more_than_chance(copies: Int[np.ndarray, " frames"]) -> Bool[np.ndarray, " frames"]:
    """Which frames have more copies than the rest of the data explains.

    If a share q of the frames is duplicated at all, and each further copy is as rare again, then
    n * q^(k - 1) of n frames are expected to have k copies or more: too many when that is < 0.01.
    """
    n = len(copies)
    share = (np.count_nonzero(copies > 1) + 1) / (n + 1)
    return n * share ** (copies - 1.0) < _CHANCE


def _reason(odd: float, copies: int) -> str:
    unlike = f"{odd:.1f} times as far from its kin as two random images are apart"
    return f"one frame {copies:,} times, {unlike}" if copies > 1 else unlike
