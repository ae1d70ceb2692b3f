"""Junk, duplicates, label conflicts and leakage in one or several datasets.

All findings come from comparing the images with one another. No particular file, order or junk
image is known in advance.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt8, UInt64

from bloodjax.data import fingerprint, images, lazy, names
from bloodjax.data.audit import duplicates, outliers
from bloodjax.data.dataset import Dataset

# An image is junk if its outlier score is above this value. Among 13,671 blood cells the highest
# score is 1.1 (1.5 in random subsets of 500, where a rare cell may be the only one of its kind);
# photographs have 1.7 or more, drawings, print and noise 2.3 or more.
_JUNK_SCORE = 1.65
# The same for an image that is repeated more often than chance explains.
_JUNK_SCORE_IF_REPEATED = 1.0
_CHANCE = 0.01

_SHOWN_KEYS = 3  # pairs of similar keys of groups in a remark

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
      label: Name of its class, or of its labels (`Dataset.label_texts`).
      split: Split that its source assigns to it, or "".
      group: Key of its group, such as a patient, or "".
    """

    key: str
    index: int
    name: str
    label: str
    split: str
    group: str = ""


Group = tuple[AuditedImage, ...]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The findings of an audit; groups are in the order of their first image.

    Junk images are in `junk` only: copies of a junk image are not duplicates, conflicts or leaks.

    Attributes:
      n: Number of audited images.
      junk: Images that are unlike all others, and unlike those of their class or repeated.
      junk_reasons: For each image in `junk`, why it is there.
      junk_frames: For each image in `junk`, a number that it shares with its copies.
      exact_duplicates: Groups of images with the same pixels.
      near_duplicates: Groups of two or more versions of one image, see `duplicates.near_ids`. They
        include exact copies of each version.
      label_conflicts: Groups of exact or near duplicates with different labels.
      leakage: Groups of exact or near duplicates in several datasets or splits.
      group_leakage: For each group key, such as a patient, that several datasets or splits have,
        all images with it.
      remarks: What else the user should know, one line each.
      left_out: Checks that were skipped, one line each.
      hashes: For each dataset, the hash of each image's pixels (`fingerprint.of_images`).
    """

    n: int
    junk: Group
    junk_reasons: tuple[str, ...]
    junk_frames: tuple[int, ...]
    exact_duplicates: tuple[Group, ...]
    near_duplicates: tuple[Group, ...]
    label_conflicts: tuple[Group, ...]
    leakage: tuple[Group, ...]
    group_leakage: tuple[Group, ...] = ()
    remarks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    hashes: Mapping[str, UInt64[np.ndarray, " _"]] = dataclasses.field(
        default_factory=dict, compare=False
    )

    @property
    def leaks(self) -> tuple[Group, ...]:
        """All that several datasets or splits share: images, then groups."""
        return self.leakage + self.group_leakage

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
            "leakage": [names(group) for group in self.leaks],
            "leaked_groups": [group[0].group for group in self.group_leakage],
            "remarks": list(self.remarks),
            "left_out": list(self.left_out),
        }


def audit(datasets: Mapping[str, Dataset]) -> Audit:
    """Compares all images of all datasets with one another.

    An image is junk if its outlier score is above 1.65, among all images and among those of its
    class, so that a rare class that is unlike the others is not junk. It is junk as well if it is
    repeated more often than chance explains and its score is above 1. A repeated image that
    resembles the others, as after oversampling, is a duplicate.

    A group, such as a patient, leaks if several datasets or splits have images with its key.

    For more than 50,000 images the search for near duplicates would take hours and gigabytes, so
    it is skipped and `left_out` reports that. Duplicates, conflicts and leaks are exact ones then,
    and outlier scores compare each image with 10,000 random ones.

    Args:
      datasets: Name of a split or source -> its images.
    """
    entries = _list_images(datasets)
    if not entries:
        return Audit(0, (), (), (), (), (), (), ())
    many = len(entries) > outliers.MAX_PAIRWISE
    ends = np.cumsum([len(dataset) for dataset in datasets.values()])
    hashes, looks = _read_images(list(datasets.values()), many)
    exact = duplicates.exact_ids(hashes)
    distinct, version = np.unique(exact, return_inverse=True)
    near = exact if many else duplicates.near_ids(looks[distinct])[version]
    _, first, frame, copies = np.unique(
        near, return_index=True, return_inverse=True, return_counts=True
    )
    features = looks[first] if many else outliers.features(looks[first])
    score = outliers.scores_from_features(features)
    frames_of = _frames_by_class(entries, frame)
    odd = np.flatnonzero(score > _JUNK_SCORE)
    is_odd = np.zeros(len(first), bool)
    is_odd[odd] = _score_within_class(features, odd, frames_of)[odd] > _JUNK_SCORE
    repeated = _more_than_chance(copies, frames_of) & (score > _JUNK_SCORE_IF_REPEATED)
    is_junk = (is_odd | repeated)[frame]
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
        junk_frames=tuple(frame[junk].tolist()),
        exact_duplicates=to_entries(without_junk(exact)),
        near_duplicates=to_entries([g for g in near_groups if len(set(exact[g])) > 1]),
        label_conflicts=tuple(group for group in groups if len({one.label for one in group}) > 1),
        leakage=tuple(group for group in groups if _spans_splits(group)),
        group_leakage=_leaked_groups([entries[i] for i in np.flatnonzero(~is_junk)]),
        remarks=_similar_keys({entry.group for entry in entries}),
        hashes=dict(zip(datasets, np.split(hashes, ends[:-1]), strict=True)),
        left_out=(_LEFT_OUT.format(len(entries), outliers.MAX_PAIRWISE),) if many else (),
    )


def _read_images(
    datasets: Sequence[Dataset], many: bool
) -> tuple[UInt64[np.ndarray, " n"], UInt8[np.ndarray, "n 48 48 3"] | Float32[np.ndarray, "n 76"]]:
    """Reads all images once: hashes, and thumbnails, or features for `many` images."""
    hashes, looks = [], []
    for pixels in (dataset.images for dataset in datasets):
        for start in range(0, len(pixels), lazy.AT_ONCE):
            chunk = pixels[start : start + lazy.AT_ONCE]
            hashes.append(fingerprint.of_images(chunk))
            thumbnails = images.resize(chunk, duplicates.THUMBNAIL)
            looks.append(outliers.features(thumbnails) if many else thumbnails)
    return np.concatenate(hashes), np.concatenate(looks)


def _list_images(datasets: Mapping[str, Dataset]) -> list[AuditedImage]:
    return [
        AuditedImage(
            key,
            index,
            f"{key}:{name}" if len(datasets) > 1 else name,
            labels[index],
            dataset.splits[index],
            dataset.groups[index],
        )
        for key, dataset in datasets.items()
        for labels in [dataset.label_texts()]
        for index, name in enumerate(dataset.names)
    ]


def _frames_by_class(
    entries: Sequence[AuditedImage], frame: Int[np.ndarray, " n"]
) -> list[Int[np.ndarray, " _"]]:
    """For each class, the frames (distinct images) that are labelled with it."""
    classes: dict[str, int] = {}
    label = np.array([classes.setdefault(entry.label, len(classes)) for entry in entries])
    pairs = np.unique(np.stack([label, frame]), axis=1)
    return np.split(pairs[1], np.flatnonzero(np.diff(pairs[0])) + 1)


def _score_within_class(
    features: Float32[np.ndarray, "n 76"],
    candidates: Int[np.ndarray, " k"],
    frames_of: Sequence[Int[np.ndarray, " _"]],
) -> Float64[np.ndarray, " n"]:
    """Outlier score of the candidates in their class; the lowest one of a frame in several."""
    score = np.full(len(features), np.inf)
    for members in frames_of:
        own = np.intersect1d(candidates, members)
        score[own] = np.minimum(score[own], outliers.scores_within(features, own, members))
    return score


def _more_than_chance(
    copies: Int[np.ndarray, " distinct"], frames_of: Sequence[Int[np.ndarray, " _"]]
) -> Bool[np.ndarray, " distinct"]:
    """Which of the distinct images have more copies than the rest of the data explains.

    Let q be the fraction of images that are duplicated at all. If each further copy is equally
    rare, n * q^(k - 1) of n images are expected to have k or more copies. An image has too many
    copies if that number is below 0.01. If all copies of an image have one label, q is the fraction
    of its class if that is higher: copies of every image of a rare class are an oversampled class.

    Args:
      copies: Number of copies of each distinct image.
      frames_of: For each class, the distinct images that are labelled with it.
    """
    n = len(copies)

    def share(frames) -> float:
        return (np.count_nonzero(copies[frames] > 1) + 1) / (len(copies[frames]) + 1)

    shares = np.full(n, share(slice(None)))
    labels = np.bincount(np.concatenate([*frames_of, []]).astype(int), minlength=n)
    for frames in frames_of:
        single = frames[labels[frames] == 1]
        shares[single] = np.maximum(shares[single], share(frames))
    return n * shares ** (copies - 1.0) < _CHANCE


def _spans_splits(group: Sequence[AuditedImage]) -> bool:
    return len({(image.key, image.split) for image in group}) > 1


def _leaked_groups(entries: Sequence[AuditedImage]) -> tuple[Group, ...]:
    """Images of each group that several datasets or splits have; a fold is one of its dataset."""
    members = collections.defaultdict(list)
    for entry in entries:
        if entry.group:
            within = entry.key if names.is_fold(entry.group) else ""
            members[entry.group, within].append(entry)
    return tuple(tuple(group) for group in members.values() if _spans_splits(group))


def _similar_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """One line if keys of groups differ in blanks, case or Unicode form only."""
    forms = collections.defaultdict(list)
    for key in sorted(keys):
        if key:
            forms["".join(fingerprint.normal_name(key).casefold().split())].append(key)
    similar = [alike for alike in forms.values() if len(alike) > 1]
    if not similar:
        return ()
    shown = "; ".join(", ".join(map(repr, alike)) for alike in similar[:_SHOWN_KEYS])
    more = f" and {len(similar) - _SHOWN_KEYS:,} more" if len(similar) > _SHOWN_KEYS else ""
    return (
        f"groups whose keys differ only in blanks, case or accents count as different ones: "
        f"{shown}{more}",
    )


def _reason(score: float, copies: int) -> str:
    reason = f"{score:.1f} times as far from its neighbours as two random images from each other"
    return f"repeated {copies:,} times, {reason}" if copies > 1 else reason
