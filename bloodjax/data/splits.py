"""Stratified, group-aware, seeded train/validation/test splits, and `splits.json`."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Int, UInt64

from bloodjax.data import fingerprint, names
from bloodjax.data.dataset import Dataset
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json

# Names that sources give to the splits that serve as parts of a run.
SOURCE_NAMES = {"validation": "val", "test": "test"}
# Key in the `splits.json` of a run that was adapted to another site; see `load`.
ADAPTED_TO = "adapted_to"


def merge_groups(
    groups: Sequence[str], duplicates: Sequence[Sequence[int]]
) -> Int[np.ndarray, " n"]:
    """Merges groups and duplicates to the groups that a split must not separate.

    Two images are in one group if they share a key in `groups`, if they are in the same entry of
    `duplicates`, or if a chain of such links connects them.

    Args:
      groups: Key of each image; an image with the key "" shares it with no other.
      duplicates: Groups of indices into `groups`.

    Returns:
      Number of each image's group.
    """
    members = collections.defaultdict(list)
    for i, key in enumerate(groups):
        if key:
            members[key].append(i)
    links = [(together[0], i) for together in (*members.values(), *duplicates) for i in together]
    rows, columns = np.array(links, np.int64).reshape(-1, 2).T
    n = len(groups)
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def split(
    labels: Int[np.ndarray, " n"],
    fractions: Mapping[str, float],
    groups: Sequence[Hashable] | Int[np.ndarray, " n"],
    seed: int,
) -> dict[str, Int[np.ndarray, " _"]]:
    """Splits images so that each split has the same proportions of classes.

    Groups are assigned one by one, the largest first and equal ones in random order, to the split
    that is furthest below its quota of their classes. If a class has no more groups left than
    there are splits without it, these groups go to these splits. If every image is its own group,
    the number of images of a class in a split thus differs from its exact quota by less than one,
    or by what it takes to put the class into every split.

    Args:
      labels: Class index of each image.
      fractions: Fraction of each split, such as {"train": 0.7, "validation": 0.15, "test": 0.15}.
      groups: Key of each image, such as `merge_groups` returns; images with equal keys go to the
        same split.
      seed: Random seed.

    Returns:
      Sorted indices of the images in each split.

    Raises:
      UserError: The fractions are not positive or do not sum to 1.
    """
    shares = list(fractions.values())
    if min(shares, default=0) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(
            f"fractions of a split are {dict(fractions)}, expected a sum of 1, each > 0"
        )
    numbers = {}
    group_of = np.array([numbers.setdefault(key, len(numbers)) for key in groups], np.int64)
    part_of_group = _assign(_contents(labels, group_of, len(numbers)), shares, seed)
    part_of = part_of_group[group_of]
    return {name: np.flatnonzero(part_of == part) for part, name in enumerate(fractions)}


def spanning_groups(datasets: Mapping[str, Dataset]) -> dict[str, tuple[str, ...]]:
    """The groups that have images in several splits: group -> the splits.

    Args:
      datasets: Name of a split -> its images. A group that is a fold of its source is another one
        than the fold of the same name of another source.
    """
    found: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for split, dataset in datasets.items():
        for group in sorted(set(dataset.groups) - {""}):
            within = dataset.reading.spec if names.is_fold(group) else ""
            found[group, within].append(split)
    return {group: tuple(parts) for (group, _), parts in found.items() if len(parts) > 1}


def in_groups_of(dataset: Dataset, other: Dataset) -> Bool[np.ndarray, " n"]:
    """Which images of `dataset` are of a group that `other` has images of too."""
    spanning = spanning_groups({"one": dataset, "other": other})
    return np.array([group in spanning for group in dataset.groups], bool)


def hash_groups(groups: Sequence[str]) -> str:
    """Hashes of the different groups as text, by which they are recognised in another source.

    Folds of a source are left out, for those of another source may have the same names.
    """
    keys = sorted(key for key in {*groups} if key and not names.is_fold(key))
    return fingerprint.to_text(fingerprint.of_texts(keys))


def own_split(dataset: Dataset, part: str) -> str | None:
    """The split of a source that serves as `part` of a run; None if all of its images do.

    A source that assigns several splits, one of which is called like the part, gives this one.
    Every command follows this rule for a source that is not the run's training source.

    Args:
      dataset: All images of the source.
      part: "validation" or "test".
    """
    name = SOURCE_NAMES[part]
    return name if name in dataset.splits and len(set(dataset.splits)) > 1 else None


def take_split(dataset: Dataset, split: str) -> Dataset:
    """The images of one of a source's own splits; the reading of the dataset says so."""
    taken = dataset.take(np.array(dataset.splits) == split)
    detail = f"its own {split} split: {len(taken):,} of {len(dataset):,} images"
    return taken.with_reading(dataset.reading.with_details(detail))


def save(
    path: pathlib.Path,
    parts: Mapping[str, Int[np.ndarray, " _"]],
    names: Mapping[str, Sequence[str]],
    sources: Mapping[str, Mapping[str, str]],
    seed: int,
    *,
    classes: Sequence[str] = (),
    hashes: Mapping[str, UInt64[np.ndarray, " _"]] = types.MappingProxyType({}),
    groups: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Writes `splits.json` atomically.

    Args:
      path: The file to write.
      parts: Indices of the images in each split.
      names: For each split, the names of all images of its source, which the indices refer to.
      sources: For each split, the "spec", "fingerprint" and "path" of its source.
      seed: Random seed of `split`.
      classes: Class names in label order.
      hashes: For each split, the hashes of all images of its source (`fingerprint.of_images`).
      groups: For each split, the groups of all images of its source.
      left_out: Images of the sources that are in no split.
    """
    content = {
        "seed": seed,
        "sources": {part: dict(sources[part]) for part in parts},
        "classes": list(classes),
        "left_out": [list(entry) for entry in left_out],
        "pixels": {
            part: fingerprint.to_text(hashes[part][indices])
            for part, indices in parts.items()
            if part in hashes
        },
        "groups": {
            part: hash_groups([groups[part][i] for i in indices])
            for part, indices in parts.items()
            if part in groups
        },
        "parts": {part: [names[part][i] for i in indices] for part, indices in parts.items()},
    }
    write(path, content)


def write(path: pathlib.Path, content: Mapping[str, object]) -> None:
    """Writes the content that `load` returns atomically."""
    atomic_write(path, json.dumps(content, indent=1))


def load(path: pathlib.Path) -> dict:
    """Loads what `save` wrote, or what an earlier version of it wrote.

    Returns:
      "seed": the random seed; "sources": for each split the "spec" and "fingerprint" of its source
      and, unless an earlier version wrote the file, its "path"; "parts": for each split the names
      of its images; "pixels": hashes of these images as text (`fingerprint.from_text`), by split;
      "groups": hashes of the groups of these images, by split (`hash_groups`); "classes": class
      names in label order; "left_out": lists of reason, class and number. The last four are empty
      in earlier versions. A run that was adapted to another site also has `ADAPTED_TO`: hashes, as
      text, of the labelled images of that site that it has learned from. "groups" has their groups
      under that key.

    Raises:
      UserError: The file is missing, damaged, or has other content.
    """
    expected = "seed, parts (lists of names) and, for each part, sources (spec and fingerprint)"
    return read_json(path, expected, _well_formed)


def _well_formed(content: Any) -> dict:
    content = {"classes": [], "pixels": {}, "groups": {}, "left_out": [], **content}
    sources, parts = dict(content["sources"]), dict(content["parts"])
    if sources.keys() != parts.keys():
        raise ValueError("sources and parts have different names")
    needed = {"spec", "fingerprint"}
    if not all(needed <= source.keys() <= needed | {"path"} for source in sources.values()):
        raise ValueError("a source has other keys")
    texts = [[*source.values()] for source in sources.values()]
    if not isinstance(content["seed"], int) or not all(
        map(_are_strings, [*texts, *parts.values(), content["classes"]])
    ):
        raise ValueError("a value has the wrong type")
    for part, text in dict(content["pixels"]).items():
        if len(fingerprint.from_text(text)) != len(parts[part]):
            raise ValueError("a part has other numbers of names and pixels")
    for text in (content.get(ADAPTED_TO, ""), *dict(content["groups"]).values()):
        fingerprint.from_text(text)
    if not all(
        len(entry) == 3 and _are_strings([*entry[:2]]) and isinstance(entry[2], int)
        for entry in content["left_out"]
    ):
        raise ValueError("left_out has other entries")
    return content


def _are_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _contents(
    labels: Int[np.ndarray, " n"], group_of: Int[np.ndarray, " n"], n_groups: int
) -> list[collections.Counter]:
    """For each group, the number of its images in each of its classes."""
    contents = [collections.Counter() for _ in range(n_groups)]
    for group, label in zip(group_of.tolist(), labels.tolist(), strict=True):
        contents[group][label] += 1
    return contents


def _assign(
    contents: Sequence[collections.Counter], shares: Sequence[float], seed: int
) -> Int[np.ndarray, " groups"]:
    """The split of each group, by the rule in the docstring of `split`."""
    images, groups_left = collections.Counter(), collections.Counter()
    for content in contents:
        images.update(content)
        groups_left.update(content.keys())
    # missing: for each split and class, how many images are missing to the quota. without: for
    # each class, the splits that have no image of it yet.
    missing = [{label: share * n for label, n in images.items()} for share in shares]
    without = {label: set(range(len(shares))) for label in images}

    part_of = np.empty(len(contents), np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(contents)).tolist()
    for group in sorted(shuffled, key=lambda group: -contents[group].total()):
        content = contents[group]
        urgent = [without[label] for label in content if groups_left[label] <= len(without[label])]
        candidates = sorted(set().union(*urgent)) or range(len(shares))
        need = [
            sum(n * missing[part][label] / images[label] for label, n in content.items())
            for part in candidates
        ]
        part = candidates[need.index(max(need))]
        part_of[group] = part
        for label, n in content.items():
            missing[part][label] -= n
            without[label].discard(part)
            groups_left[label] -= 1
    return part_of
