"""Sets of ArrayRecord shards: those that `bloodjax.pack` wrote, and tensorflow_datasets' own.

FOLDER/dataset_info.json, features.json, <name>-<split>.array_record-00000-of-00001, ...

What `pack` wrote has `index.json` beside them: names, labels, groups and splits in the source's
order, and the size and checksum of each shard. Another set's records are all read once for that.
Images are read when they are asked for, in whatever thread asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from bloodjax.data import images, lazy
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats.folders import SPLITS
from bloodjax.data.formats.records import Reader, Shard
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError

INFO = "dataset_info.json"
INDEX = "index.json"
UNFINISHED = ".unfinished"
FORMAT = 1  # of index.json
_SHARDS = "*.array_record-*"


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of a set without reading its images.

    Attributes:
      shards: of all splits, in the order in which their records are counted.
      records: for each image, in the data set's order, the number of its record.
      labels: its class.
      names: its name.
      splits: its split.
      groups: its group.
    """

    shards: tuple[Shard, ...]
    records: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]


def is_set(folder: pathlib.Path) -> bool:
    """Whether `folder` holds a set of shards, or was to become one."""
    described = any((folder / name).exists() for name in (INFO, UNFINISHED))
    return described or any(folder.glob(_SHARDS))


def read(folder: pathlib.Path, size: int) -> Dataset:
    """The set in `folder`, its images unread, of `size` pixels a side.

    Raises:
      UserError: its description, its index or a shard is missing or damaged; or later, when
        images are read, their shard is.
    """
    from bloodjax.data.formats import tfds  # takes its time, and most runs do without

    _check_finished(folder)
    layout = tfds.read_layout(folder)
    if (folder / INDEX).exists():
        index = _read_index(folder, len(layout.classes))
        reader = Reader(index.shards)
    else:
        reader, index = _scan(folder, layout)

    def read_files(places: Sequence[int]) -> list[bytes]:
        numbers = index.records[np.asarray(places, int)].tolist()
        records = zip(numbers, reader.read(numbers), strict=True)
        return [_parsed(reader, number, record, layout)[0] for number, record in records]

    def load_pixels(places: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k size size 3"]:
        found = np.empty((len(places), layout.side, layout.side, 3), np.uint8)
        for i, pixels in enumerate(read_files(places.tolist())):
            found[i] = tfds.pixels(pixels, layout)
        return images.resize(found, size)

    def refusal(place: int, error: ValueError) -> UserError:
        return _refusal(reader, int(index.records[place]), error)

    n = len(index.names)
    if layout.side is None:
        pictures = lazy.encoded(read_files, n, size, refusal)
    else:
        pictures = LazyImages(load_pixels, np.arange(n), size)
    return Dataset(
        images=pictures,
        labels=index.labels.astype(np.int32),
        names=index.names,
        classes=layout.classes,
        splits=index.splits,
        groups=index.groups,
    )


def own_side(folder: pathlib.Path) -> int | None:
    """The side of the images of a set that keeps them as pixels; None where as files."""
    from bloodjax.data.formats import tfds

    _check_finished(folder)
    return tfds.read_layout(folder).side


def fingerprint(folder: pathlib.Path) -> str:
    """A short text that stays the same as long as the set does; reads no images.

    It covers the index, with the checksums of all shards, or what another set says of itself, and
    the name and size of every shard.

    Raises:
      UserError: the set is unfinished, or cannot be read.
    """
    _check_finished(folder)
    try:
        told = [(path.name, path.stat().st_size) for path in folder.glob(_SHARDS)]
        for pattern in (INFO, INDEX, "features.json", "*.labels.txt"):
            told += [(path.name, path.read_bytes()) for path in folder.glob(pattern)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return "sha256:" + hashlib.sha256(repr(sorted(told)).encode()).hexdigest()


def write_index(
    path: pathlib.Path, shards: Mapping[str, Mapping[str, int | str]], dataset: Dataset, records
) -> None:
    """Writes `index.json`.

    Args:
      path: the file.
      shards: by file name, in the order in which their records are counted: how many "records" it
        holds, its "bytes", and their "sha256".
      dataset: what the set is of; its images are not looked at.
      records: the number of each image's record, int [n].
    """
    groups = dataset.groups if any(dataset.groups) else ()
    content = {
        "format": FORMAT,
        "shards": shards,
        "records": records.tolist(),
        "labels": dataset.labels.tolist(),
        "names": dataset.names,
        "splits": dataset.splits,
        "groups": groups,
    }
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _check_finished(folder: pathlib.Path) -> None:
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder}: packing it was not finished; run the same command again")
    if not (folder / INFO).exists():
        raise UserError(f"{folder}: has no {INFO}, expected all files of a set of shards")


def _read_index(folder: pathlib.Path, classes: int) -> Index:
    path = folder / INDEX
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if isinstance(content, dict) and content.get("format") != FORMAT:
        found = content.get("format")
        raise UserError(f"{path}: is of format {found!r}, expected {FORMAT}: another version's")
    try:
        index = _index(folder, content, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: is damaged ({error}), expected what bloodjax.pack wrote"
        ) from error
    for shard, told in zip(index.shards, content["shards"].values(), strict=True):
        if not shard.path.is_file():
            raise UserError(f"{shard.path}: no such file, expected the shards of {path}")
        found = shard.path.stat().st_size
        if found != told["bytes"]:
            raise UserError(f"{shard.path}: is damaged, {found} bytes, expected {told['bytes']}")
    return index


def _index(folder: pathlib.Path, content: Mapping[str, Any], classes: int) -> Index:
    shards = tuple(
        Shard(folder / pathlib.PurePath(name).name, int(told["records"]))
        for name, told in content["shards"].items()
    )
    names = tuple(content["names"])
    n, total = len(names), sum(shard.records for shard in shards)
    # Few different ones: each is kept once.
    splits = tuple(map(sys.intern, content["splits"]))
    groups = tuple(map(sys.intern, content["groups"] or ("",) * n))
    numbers = {key: np.array(content[key], np.int64) for key in ("records", "labels")}
    for key, limit in (("records", total), ("labels", classes)):
        right = (numbers[key] >= 0) & (numbers[key] < limit)
        if numbers[key].shape != (n,) or not right.all():
            raise ValueError(f"{key} are not {n} numbers below {limit}")
    texts = (*names, *splits, *groups)
    if len(texts) != 3 * n or len(set(names)) != n or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"names, splits and groups are not {n} texts each, the names distinct")
    if min((shard.records for shard in shards), default=0) < 1:
        raise ValueError("no shards, or one without records")
    return Index(shards, numbers["records"], numbers["labels"], names, splits, groups)


def _scan(folder: pathlib.Path, layout) -> tuple[Reader, Index]:
    """What `index.json` would say, from the records themselves."""
    shards = tuple(shard for of_split in layout.splits.values() for shard in of_split)
    reader = Reader(shards)
    if len(reader) == 0:
        raise UserError(f"{folder}: holds no records, expected at least one")
    splits = [
        (SPLITS.get(split.lower(), split), i)
        for split, of_split in layout.splits.items()
        for i in range(sum(shard.records for shard in of_split))
    ]
    labels, texts = [], {"name": [], "group": []}
    for start in range(0, len(reader), lazy.AT_ONCE):
        numbers = range(start, min(start + lazy.AT_ONCE, len(reader)))
        for number, record in zip(numbers, reader.read(numbers), strict=True):
            _, label, found = _parsed(reader, number, record, layout)
            if not 0 <= label < len(layout.classes):
                told = f"label {label}, expected 0..{len(layout.classes) - 1}"
                raise _refusal(reader, number, ValueError(told))
            labels.append(label)
            for key, values in texts.items():
                values.append(found.get(key, ""))
    names = texts["name"]
    if len(set(names)) < len(names) or "" in names:
        names = [f"{split}/{i}" for split, i in splits]
    return reader, Index(
        shards,
        np.arange(len(labels)),
        np.array(labels, np.int64),
        tuple(names),
        tuple(split for split, _ in splits),
        tuple(texts["group"]),
    )


def _parsed(reader: Reader, number: int, record: bytes, layout) -> tuple[bytes, int, dict]:
    from bloodjax.data.formats import tfds

    try:
        return tfds.parse(record, layout)
    except ValueError as error:
        raise _refusal(reader, number, error) from error


def _refusal(reader: Reader, number: int, error: ValueError) -> UserError:
    path = reader.shard(number).path
    return UserError(f"{path}: record {number} of the set cannot be read: {error}")
