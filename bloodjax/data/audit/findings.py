"""Junk, duplicates, label conflicts and leakage in one or several datasets.

All findings come from comparing the images with one another. No particular file, order or junk
image is known in advance.
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

# An image is junk if its outlier score is above this value. Among 13,671 blood cells the highest
# score is 1.1 (1.5 in random subsets of 500, where a rare cell may be the only one of its kind);
# photographs have 1.7 or more, drawings, print and noise 2.3 or more.
_JUNK_SCORE = 1.65
# The same for an image that is repeated more often than chance explains.
_JUNK_SCORE_IF_REPEATED = 1.0
_CHANCE = 0.01

_LEFT_OUT = (
    "near duplicates: {:,} images are more than the {:,} that are compared in pairs; duplicates, "
    "conflicts and leaks are those of equal pixels only"
)


class AuditedImage(NamedTuple):
    """One image of the audited datasets.

    Attributes:
      key: Key of its dataset.
      index: Its index in the dataset.
      name: Its name in the dataset, after the key if several datasets were audited.
      label: Name of its class.
      split: Split that its source assigns to it, or "".
    """

    key: str
    index: int
    name: str
    label: str
    split: str


Group = tuple[AuditedImage, ...]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The findings of an audit; groups are in the order of their first image.

    Junk images are in `junk` only: copies of a junk image are not duplicates, conflicts or leaks.

    Attributes:
      n: Number of audited images.
      junk: Images that are unlike all others.
      junk_reasons: For each image in `junk`, why it is there.
      exact_duplicates: Groups of images with the same pixels.
      near_duplicates: Groups of two or more versions of one image, see `duplicates.near_ids`. They
        include exact copies of each version.
      label_conflicts: Groups of exact or near duplicates with different labels.
      leakage: Groups of exact or near duplicates in several datasets or splits.
      left_out: Checks that were skipped, one line each.
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
        """Indices of the junk images in the dataset `key`."""
        return [image.index for image in self.junk if image.key == key]

    def duplicates_in(self, key: str) -> list[list[int]]:
        """Groups of indices of exact and near duplicates within the dataset `key`."""
        found = (*self.exact_duplicates, *self.near_duplicates)
        within = ([image.index for image in group if image.key == key] for group in found)
        return [group for group in within if len(group) > 1]

    def to_json(self) -> dict:
        """The content of `audit.json`: the findings as names of images."""

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
    """Compares all images of all datasets with one another.

    An image is junk if its outlier score is above 1.65, or if it is repeated more often than
    chance explains and its score is above 1. A repeated image that resembles the others, as after
    oversampling, is a duplicate.

    For more than 50,000 images the search for near duplicates would take hours and gigabytes, so
    it is skipped and `left_out` reports that. Duplicates, conflicts and leaks are exact ones then,
    and outlier scores compare each image with 10,000 random ones.

    Args:
      datasets: Name of a split or source -> its images.
    """
    entries = _list_images(datasets)
    if not entries:
        return Audit(0, (), (), (), (), (), ())
    many = len(entries) > outliers.MAX_PAIRWISE
    exact, looks = _read_images(list(datasets.values()), many)
    distinct, version = np.unique(exact, return_inverse=True)
    near = exact if many else duplicates.near_ids(looks[distinct])[version]
    _, first, frame, copies = np.unique(
        near, return_index=True, return_inverse=True, return_counts=True
    )
    if many:
        score = outliers.scores_from_features(looks[first])
    else:
        score = outliers.outlier_scores(looks[first])
    repeated = _more_than_chance(copies) & (score > _JUNK_SCORE_IF_REPEATED)
    is_junk = ((score > _JUNK_SCORE) | repeated)[frame]
    junk = np.flatnonzero(is_junk)

    def without_junk(ids: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
        groups = (group[~is_junk[group]] for group in duplicates.groups(ids))
        return [group for group in groups if len(group) > 1]

    def to_entries(groups: Sequence[Int[np.ndarray, " _"]]) -> tuple[Group, ...]:
        return tuple(tuple(entries[i] for i in group) for group in groups)

    near_groups = without_junk(near)
    groups = to_entries(near_groups)
    return Audit(
        n=len(entries),
        junk=tuple(entries[i] for i in junk),
        junk_reasons=tuple(_reason(float(score[f]), int(copies[f])) for f in frame[junk]),
        exact_duplicates=to_entries(without_junk(exact)),
        near_duplicates=to_entries([g for g in near_groups if len(set(exact[g])) > 1]),
        label_conflicts=tuple(group for group in groups if len({one.label for one in group}) > 1),
        leakage=tuple(
            group for group in groups if len({(one.key, one.split) for one in group}) > 1
        ),
        left_out=(_LEFT_OUT.format(len(entries), outliers.MAX_PAIRWISE),) if many else (),
    )


def _read_images(
    datasets: Sequence[Dataset], many: bool
) -> tuple[Int[np.ndarray, " n"], UInt8[np.ndarray, "n 48 48 3"] | Float32[np.ndarray, "n 76"]]:
    """Reads all images once: ids of equal images, and thumbnails, or features for `many` images."""
    looks = []

    def read() -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        for pixels in (dataset.images for dataset in datasets):
            for start in range(0, len(pixels), lazy.AT_ONCE):
                chunk = pixels[start : start + lazy.AT_ONCE]
                thumbnails = images.resize(chunk, duplicates.THUMBNAIL)
                looks.append(outliers.features(thumbnails) if many else thumbnails)
                yield from chunk

    return duplicates.exact_ids(read()), np.concatenate(looks)


def _list_images(datasets: Mapping[str, Dataset]) -> list[AuditedImage]:
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


def _more_than_chance(copies: Int[np.ndarray, " distinct"]) -> Bool[np.ndarray, " distinct"]:
    """Which of the distinct images have more copies than the rest of the data explains.

    Let q be the fraction of images that are duplicated at all. If each further copy is equally
    rare, n * q^(k - 1) of n images are expected to have k or more copies. An image has too many
    copies if that number is below 0.01.
    """
    n = len(copies)
    share = (np.count_nonzero(copies > 1) + 1) / (n + 1)
    return n * share ** (copies - 1.0) < _CHANCE


def _reason(score: float, copies: int) -> str:
    reason = f"{score:.1f} times as far from its neighbours as two random images from each other"
    return f"repeated {copies:,} times, {reason}" if copies > 1 else reason
