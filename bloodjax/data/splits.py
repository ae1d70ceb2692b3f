"""Who trains and who tests: stratified, grouped, seeded parts, and the file that keeps them."""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Int
from scipy.sparse import csgraph

from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json


def merge_groups(
    groups: Sequence[str], duplicates: Sequence[Sequence[int]]
) -> Int[np.ndarray, " n"]:
    """One number an image, equal for images that must stay on one side of a split.

    Two images belong together when they share a key in `groups` (an image with the key "" is
    alone), when they are listed in the same entry of `duplicates` (indices into `groups`), or
    through a chain of such links.
    """
    members = collections.defaultdict(list)
    for i, key in enumerate(groups):
        if key:
            members[key].append(i)
    links = [(together[0], i) for together in (*members.values(), *duplicates) for i in together]
    rows, columns = np.array(links, np.int64).reshape(-1, 2).T
    n = len(groups)
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
    return csgraph.connected_components(graph, directed=False)[1]


def split(
    labels: Int[np.ndarray, " n"],
    fractions: Mapping[str, float],
    groups: Sequence[Hashable] | Int[np.ndarray, " n"],
    seed: int,
) -> dict[str, Int[np.ndarray, " _"]]:
    """Shares images out between parts, each class in the same proportions.

    Groups go one by one, the largest first and equal ones in an order drawn from `seed`, to the
    part that is furthest below its quota of their classes. A class with as few groups left as
    there are parts without it goes to those parts. When every image is a group of its own, a
    class therefore differs from its exact share of a part by less than one image, or by what it
    takes to be in every part.

    Args:
      labels: the class of each image, from 0 up.
      fractions: the share of each part, such as {"train": 0.7, "validation": 0.15, "test": 0.15}.
      groups: a key for each image, such as `merge_groups` gives; images with equal keys stay in
        one part.
      seed: same seed, same parts.

    Returns:
      The sorted indices of the images in each part.

    Raises:
      UserError: the fractions are not positive or do not sum to 1.
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


def save(
    path: pathlib.Path,
    parts: Mapping[str, Int[np.ndarray, " _"]],
    names: Mapping[str, Sequence[str]],
    sources: Mapping[str, Mapping[str, str]],
    seed: int,
) -> None:
    """Writes `splits.json`, whole or not at all.

    Args:
      path: the file.
      parts: the indices of the images in each part.
      names: for each part, the names that its indices count in (those of its source).
      sources: for each part, the "spec" and "fingerprint" of its source.
      seed: what `split` was given.
    """
    content = {
        "seed": seed,
        "sources": {part: dict(sources[part]) for part in parts},
        "parts": {part: [names[part][i] for i in indices] for part, indices in parts.items()},
    }
    atomic_write(path, json.dumps(content, indent=1))


def read(path: pathlib.Path) -> dict:
    """What `save` wrote, by the keys "seed", "sources" and "parts".

    `sources` holds for each part the "spec" and "fingerprint" of its source, `parts` the names of
    its images.

    Raises:
      UserError: the file is missing, damaged, or of another form.
    """
    expected = "seed, parts (lists of names) and, for each part, sources (spec and fingerprint)"
    return read_json(path, expected, _well_formed)


def _well_formed(content: Any) -> dict:
    sources, parts = dict(content["sources"]), dict(content["parts"])
    if sources.keys() != parts.keys():
        raise ValueError("sources and parts are not of the same names")
    if not all(source.keys() == {"spec", "fingerprint"} for source in sources.values()):
        raise ValueError("a source has other keys")
    texts = [[*source.values()] for source in sources.values()]
    if not isinstance(content["seed"], int) or not all(
        map(_are_strings, [*texts, *parts.values()])
    ):
        raise ValueError("a value is of the wrong type")
    return content


def _are_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _contents(
    labels: Int[np.ndarray, " n"], group_of: Int[np.ndarray, " n"], n_groups: int
) -> list[collections.Counter]:
    """For each group, the number of its images in each class that it holds."""
    contents = [collections.Counter() for _ in range(n_groups)]
    for group, label in zip(group_of.tolist(), labels.tolist(), strict=True):
        contents[group][label] += 1
    return contents


def _assign(
    contents: Sequence[collections.Counter], shares: Sequence[float], seed: int
) -> Int[np.ndarray, " groups"]:
    """The part of each group, by the rule that `split` states."""
    images, groups_left = collections.Counter(), collections.Counter()
    for content in contents:
        images.update(content)
        groups_left.update(content.keys())
    # By part and class, how many images the part is below its quota; by class, which parts have
    # none of it yet.
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
