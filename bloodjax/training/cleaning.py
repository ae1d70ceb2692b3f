"""What a run leaves out because of the audit's findings (`config.data.clean`).

With "drop", junk leaves every split, and images that a later split contains too leave the earlier
one, as do images of a group, such as a patient, of which a later split has images. Cleaning that
would cost a class much of its images is an error.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import audit
from bloodjax.data.dataset import Dataset, count_classes, label_texts
from bloodjax.data.reading import LeftOut, left_out_by_class
from bloodjax.errors import UserError

SPLITS = ("train", "validation", "test")
Indices = Int[np.ndarray, " _"]

# Largest fraction of a class's images that cleaning may take. One image is always allowed.
_MAX_LOSS = 0.1

JUNK = "junk"
_LEAKED = "also in a later split"
_LEAKED_GROUP = "of a group in a later split"


def source_of(split: str, loaded: Mapping[str, Dataset]) -> str:
    """Name of the source that `split` comes from: its own one, or train's."""
    return split if split in loaded else "train"


def check_allowed(config: Config, findings: audit.Audit) -> None:
    """Ends the run if `config.data.clean` is "fail" and there are findings.

    Raises:
      UserError: There are.
    """
    if config.data.clean == "fail" and (
        findings.junk or findings.label_conflicts or findings.leaks
    ):
        raise UserError(
            f"the audit found {console.counted(len(findings.junk), 'junk image')}, "
            f"{console.counted(len(findings.label_conflicts), 'label conflict')} and "
            f"{console.counted(len(findings.leaks), 'leak')}; config.data.clean is fail"
        )


def remarks(config: Config, findings: audit.Audit, page: pathlib.Path) -> tuple[str, ...]:
    """One line for each thing that the audit found and cleaning does not resolve."""
    found = [(len(findings.label_conflicts), "label conflict")]
    if config.data.clean == "report":
        found += [(len(findings.junk), "junk image"), (len(findings.leaks), "leak")]
    kept = [console.counted(n, what) for n, what in found if n]
    lines = (f"the audit found {', '.join(kept)}, kept as they are: see {page}",) if kept else ()
    return findings.remarks + lines


def without_junk(
    config: Config, loaded: Mapping[str, Dataset], findings: audit.Audit
) -> dict[str, Indices]:
    """For each source, the indices of the images that are kept."""
    drop = config.data.clean == "drop"
    return {
        name: np.setdiff1d(np.arange(len(dataset)), findings.junk_in(name) if drop else [])
        for name, dataset in loaded.items()
    }


def junk_by_split(
    loaded: Mapping[str, Dataset],
    own_splits: Mapping[str, str],
    findings: audit.Audit,
) -> dict[str, Indices]:
    """Indices of the junk images by the split that they would be in; train's if it is drawn.

    Args:
      loaded: Images of each source.
      own_splits: Split of the train source -> split of the run that takes it.
      findings: Findings of the audit of `loaded`.
    """
    junk: dict[str, list[int]] = {}
    for image in findings.junk:
        split = image.key
        if split == "train" and image.split:
            split = own_splits.get(image.split, "")
        if split:
            junk.setdefault(split, []).append(image.index)
    return {split: np.array(index) for split, index in junk.items()}


def without_leaks(
    loaded: Mapping[str, Dataset], indices: Mapping[str, Indices], findings: audit.Audit
) -> tuple[dict[str, Indices], dict[str, dict[str, Indices]]]:
    """Removes from each split the images that a later one contains too, or whose group it has.

    Args:
      loaded: Images of each source.
      indices: Indices of the images of each split in its source.
      findings: Findings of the audit of `loaded`.

    Returns:
      The indices that are left, and those that are removed, by split and reason.
    """
    split_of = {
        (source_of(name, loaded), int(i)): SPLITS.index(name)
        for name, index in indices.items()
        for i in index
    }
    reasons: dict[tuple[str, int], str] = {}
    for reason, groups in ((_LEAKED, findings.leakage), (_LEAKED_GROUP, findings.group_leakage)):
        for group in groups:
            members = [(image.key, image.index) for image in group]
            members = [member for member in members if member in split_of]
            last = max((split_of[member] for member in members), default=0)
            for member in members:
                if split_of[member] < last:
                    reasons.setdefault(member, reason)
    kept, removed = {}, {}
    for name, index in indices.items():
        source = source_of(name, loaded)
        why = np.array([reasons.get((source, int(i)), "") for i in index], object)
        kept[name] = index[why == ""]
        removed[name] = {reason: index[why == reason] for reason in sorted(set(why) - {""})}
    return kept, removed


def left_out(
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, Indices],
    removed: Mapping[str, Mapping[str, Indices]],
) -> tuple[LeftOut, ...]:
    """The images of the sources that are in no split, by reason and class.

    Args:
      loaded: Images of each source.
      indices: Indices of the images of each split in its source.
      removed: Indices of the images that were removed, by split and reason.
    """
    entries: list[LeftOut] = []
    for name, dataset in loaded.items():
        why = np.full(len(dataset), "", object)
        for split in {split for split in dataset.splits if split}:
            why[np.array(dataset.splits) == split] = f"of the unused split {split}"
        for split, by_reason in removed.items():
            if source_of(split, loaded) == name:
                for reason, index in by_reason.items():
                    why[index] = reason
        for split, index in indices.items():
            if source_of(split, loaded) == name:
                why[index] = ""
        for reason in dict.fromkeys(why[why != ""]):
            entries += left_out_by_class(
                reason, label_texts(dataset.labels[why == reason], dataset.classes)
            )
    return tuple(entries)


def check_losses(
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, Indices],
    removed: Mapping[str, Mapping[str, Indices]],
    findings: audit.Audit,
    page: pathlib.Path,
) -> None:
    """Checks that cleaning leaves nearly all of each class, and some of it in each split.

    Copies of one junk image count once: a frame that is repeated a hundred times is one image.

    Args:
      loaded: Images of each source.
      indices: Indices of the images of each split after cleaning.
      removed: Indices of the images that were removed, by split and reason.
      findings: Findings of the audit.
      page: Page of the audit.

    Raises:
      UserError: A class loses more than a tenth of its images, or all of those in a split.
    """
    classes = loaded["train"].classes
    frame_of = {
        (image.key, image.index): frame
        for image, frame in zip(findings.junk, findings.junk_frames, strict=True)
    }
    kept, lost = np.zeros(len(classes), int), np.zeros(len(classes), int)
    frames: set[tuple[int, int]] = set()
    for name, index in indices.items():
        source = source_of(name, loaded)
        labels = loaded[source].labels
        gone = np.zeros(len(classes), int)
        for reason, which in removed.get(name, {}).items():
            counts = count_classes(labels[which], len(classes))
            gone += counts
            if reason == JUNK:
                frames |= {
                    (label, frame_of[source, int(i)])
                    for i in which
                    for label in np.flatnonzero(count_classes(labels[[i]], len(classes))).tolist()
                }
            else:
                lost += counts
        left = count_classes(labels[index], len(classes))
        empty = np.flatnonzero((gone > 0) & (left == 0))
        if len(empty):
            raise _too_much(classes, empty, gone, gone, f"{name} images", removed[name], page)
        kept += left
    lost += np.bincount([label for label, _ in frames], minlength=len(classes)).astype(int)
    total = kept + lost
    much = np.flatnonzero(lost > np.maximum(1, _MAX_LOSS * total))
    if len(much):
        reasons = dict.fromkeys(
            reason for by_reason in removed.values() for reason, i in by_reason.items() if len(i)
        )
        raise _too_much(classes, much, lost, total, "images", reasons, page)


def _too_much(
    classes: Sequence[str],
    of: Indices,
    lost: Int[np.ndarray, " classes"],
    total: Int[np.ndarray, " classes"],
    what: str,
    reasons: Iterable[str],
    page: pathlib.Path,
) -> UserError:
    shown = ", ".join(f"{lost[i]:,} of {total[i]:,} {what} of {classes[i]}" for i in of[:3])
    more = f" and of {len(of) - 3:,} more classes" if len(of) > 3 else ""
    return UserError(
        f"config.data.clean=drop would leave out {shown}{more} ({'; '.join(reasons)}): look at "
        f"{page}, then correct the data, or keep all images with config.data.clean=report"
    )
