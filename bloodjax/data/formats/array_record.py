"""Datasets in ArrayRecord shards, written by `bloodjax.pack` or by tensorflow_datasets.

FOLDER/dataset_info.json, features.json, <name>-<split>.array_record-00000-of-00001, ...

`bloodjax.pack` also writes `index.json`, which contains names, labels, groups and splits in the
source's order, and the size and checksum of each shard. For a dataset without it, all records are
read once. Images are lazy.
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
from jaxtyping import Float32, Int, UInt8

from bloodjax.data import bit_depth, deep_files, lazy
from bloodjax.data import fingerprint as fingerprint_lib
from bloodjax.data import images as images_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.facts import NO_IMAGES, Facts, Tally
from bloodjax.data.formats.layout import SPLITS
from bloodjax.data.formats.records import Reader, Shard
from bloodjax.data.lazy import LazyImages
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.errors import UserError

INFO = "dataset_info.json"
INDEX = "index.json"
UNFINISHED = ".unfinished"
FORMAT = 1  # of index.json
_SHARDS = "*.array_record-*"
_METADATA = (INFO, INDEX, "features.json", "*.labels.txt")


@dataclasses.dataclass(frozen=True)
class Index:
    """Everything about a dataset except its images, in the order of the dataset.

    Attributes:
      shards: Shards of all splits, in the order in which their records are numbered.
      records: Number of each image's record.
      labels: Class index of each image.
      names: Name of each image.
      splits: Split of each image.
      groups: Group of each image, or "".
      tally: What reading the images had to decide when they were packed.
      fit: How the images were made squares, if pixels are stored; "" if it is unknown.
      weights: Weight of each image, or None if the source gave none.
    """

    shards: tuple[Shard, ...]
    records: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    tally: Tally = NO_IMAGES
    fit: str = ""
    weights: Float32[np.ndarray, " n"] | None = None


def is_shards(folder: pathlib.Path) -> bool:
    """Whether `folder` contains shards, or is marked as an unfinished dataset of shards.

    A `dataset_info.json` alone is no sign of shards: the Hugging Face Hub puts one beside folders
    of images.
    """
    described = (folder / INFO).exists() and any(
        (folder / name).exists() for name in ("features.json", INDEX)
    )
    return described or (folder / UNFINISHED).exists() or any(folder.glob(_SHARDS))


def read_dataset(folder: pathlib.Path, size: int, options: ReadOptions = DEFAULTS) -> Dataset:
    """Reads the dataset in `folder`, with lazy images of `size` pixels in height and width.

    Raises:
      UserError: The metadata, the index or a shard is missing or damaged. Indexing the images
        raises it too, if their shard is damaged.
    """
    from bloodjax.data.formats import tfds  # slow to import, and most runs do not need it

    _check_finished(folder)
    schema = tfds.read_schema(folder)
    if (folder / INDEX).exists():
        index = _read_index(folder, len(schema.classes))
        reader = Reader(index.shards)
    else:
        reader, index = _scan(folder, schema, options)
    options = _check_options(folder, index, options)

    def read_files(indices: Sequence[int]) -> list[bytes]:
        numbers = index.records[np.asarray(indices, int)].tolist()
        records = zip(numbers, reader.read(numbers), strict=True)
        return [_parse(reader, number, record, schema)[0] for number, record in records]

    def load_pixels(indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k size size 3"]:
        pixels = np.empty((len(indices), schema.size, schema.size, 3), np.uint8)
        for i, data in enumerate(read_files(indices.tolist())):
            pixels[i] = tfds.decode_pixels(data, schema)
        return images_lib.resize(pixels, size)

    def to_error(i: int, error: ValueError) -> UserError:
        return _record_error(reader, int(index.records[i]), error)

    n = len(index.names)
    if schema.size is None:
        images = lazy.decode_lazily(read_files, n, size, to_error, options)
    else:
        images = LazyImages(load_pixels, np.arange(n), size)
    return Dataset(
        images=images,
        labels=index.labels.astype(np.int32),
        names=index.names,
        classes=schema.classes,
        splits=index.splits,
        groups=index.groups,
        reading=_reading(folder, index).with_tally(index.tally, options),
        weights=index.weights,
    )


def _reading(folder: pathlib.Path, index: Index) -> Reading:
    packed = (folder / INDEX).exists()
    groups = set(index.groups) - {""}
    fact = f"{len(groups)} group{'s' if len(groups) != 1 else ''}" if groups else ""
    return Reading(
        layout="packed shards" if packed else "shards of tensorflow_datasets",
        details=(fact,) if fact else (),
    )


def native_size(folder: pathlib.Path) -> int | None:
    """Height and width of the images if the records store pixels; None if they store files."""
    from bloodjax.data.formats import tfds

    _check_finished(folder)
    return tfds.read_schema(folder).size


def fingerprint(folder: pathlib.Path) -> str:
    """A short text that changes when the dataset changes.

    It covers the bytes of every shard, of the index and of the metadata files, so all shards are
    read.

    Raises:
      UserError: The dataset is unfinished, or cannot be read.
    """
    _check_finished(folder)
    patterns = (_SHARDS, *_METADATA)
    names = [path.name for pattern in patterns for path in folder.glob(pattern)]
    return fingerprint_lib.of_files(folder, names)


def earlier_fingerprint(folder: pathlib.Path) -> str:
    """The fingerprint of earlier versions: of each shard it covers the name and size only.

    Raises:
      UserError: The dataset is unfinished, or cannot be read.
    """
    _check_finished(folder)
    try:
        entries = [(path.name, path.stat().st_size) for path in folder.glob(_SHARDS)]
        for pattern in _METADATA:
            entries += [(path.name, path.read_bytes()) for path in folder.glob(pattern)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return "sha256:" + hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()


def write_index(
    path: pathlib.Path,
    shards: Mapping[str, Mapping[str, int | str]],
    dataset: Dataset,
    records: Int[np.ndarray, " n"],
    fit: str,
) -> None:
    """Writes `index.json`.

    Args:
      path: The file to write.
      shards: File name -> number of "records", number of "bytes", and "sha256", in the order in
        which records are numbered.
      dataset: The dataset that the shards contain; its images are not read.
      records: Number of each image's record, int [n].
      fit: How the images were made squares, if pixels are stored; else "".
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
        "tally": dataclasses.asdict(dataset.reading.tally),
        "fit": fit,
    }
    if dataset.weights is not None:
        content["weights"] = dataset.weights.tolist()
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _check_finished(folder: pathlib.Path) -> None:
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder}: packing was interrupted; run the same command again")
    if not (folder / INFO).exists():
        raise UserError(f"{folder}: has no {INFO}, expected all files of a dataset of shards")


def _read_index(folder: pathlib.Path, classes: int) -> Index:
    path = folder / INDEX
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if isinstance(content, dict) and content.get("format") != FORMAT:
        found = content.get("format")
        raise UserError(f"{path}: has format {found!r} of another version, expected {FORMAT}")
    try:
        index = _index(folder, content, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: is damaged ({error}), expected a file that bloodjax.pack wrote"
        ) from error
    for shard, metadata in zip(index.shards, content["shards"].values(), strict=True):
        if not shard.path.is_file():
            raise UserError(f"{shard.path}: no such file, expected the shards of {path}")
        found = shard.path.stat().st_size
        if found != metadata["bytes"]:
            raise UserError(
                f"{shard.path}: is damaged, {found} bytes, expected {metadata['bytes']}"
            )
    return index


def _index(folder: pathlib.Path, content: Mapping[str, Any], classes: int) -> Index:
    shards = tuple(
        Shard(folder / pathlib.PurePath(name).name, int(metadata["records"]))
        for name, metadata in content["shards"].items()
    )
    names = tuple(content["names"])
    n, total = len(names), sum(shard.records for shard in shards)
    # There are few distinct texts; interning stores each of them once.
    splits = tuple(map(sys.intern, content["splits"]))
    groups = tuple(map(sys.intern, content["groups"] or ("",) * n))
    numbers = {key: np.array(content[key], np.int64) for key in ("records", "labels")}
    for key, limit in (("records", total), ("labels", classes)):
        valid = (numbers[key] >= 0) & (numbers[key] < limit)
        if numbers[key].shape != (n,) or not valid.all():
            raise ValueError(f"{key} are not {n} numbers below {limit}")
    texts = (*names, *splits, *groups)
    if len(texts) != 3 * n or len(set(names)) != n or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"names, splits and groups are not {n} texts each with distinct names")
    if min((shard.records for shard in shards), default=0) < 1:
        raise ValueError("there are no shards, or a shard has no records")
    # Earlier versions wrote neither.
    tally, fit = Tally.from_json(content.get("tally", {})), str(content.get("fit", ""))
    weights = None
    if "weights" in content:
        weights = np.array(content["weights"], np.float32)
        if weights.shape != (n,) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"weights are not {n} numbers of at least 0")
    return Index(
        shards, numbers["records"], numbers["labels"], names, splits, groups, tally, fit, weights
    )


def _check_options(folder: pathlib.Path, index: Index, options: ReadOptions) -> ReadOptions:
    """`options` with the scale of the images; raises UserError if they were packed with others."""
    scale = index.tally.scale
    if scale and options.bits not in (AUTO, scale):
        raise UserError(
            f"{folder}: its values have the scale {scale}, expected it to be {options.bits}; pack "
            f"the source again with --bits={options.bits}, or set config.data.bits={scale}"
        )
    if index.fit and index.fit != options.fit:
        raise UserError(
            f"{folder}: was packed with --fit={index.fit}, expected {options.fit}; pack the source "
            f"again, or set config.data.fit={index.fit}"
        )
    return dataclasses.replace(options, bits=scale or options.bits)


def _scan(folder: pathlib.Path, schema, options: ReadOptions) -> tuple[Reader, Index]:
    """Reads all records for the content that `index.json` would have."""
    shards = tuple(shard for of_split in schema.splits.values() for shard in of_split)
    reader = Reader(shards)
    if len(reader) == 0:
        raise UserError(f"{folder}: contains no records, expected at least one")
    splits = [
        (SPLITS.get(split.lower(), split), i)
        for split, of_split in schema.splits.items()
        for i in range(sum(shard.records for shard in of_split))
    ]
    labels, texts, deep = [], {"name": [], "group": []}, []
    for start in range(0, len(reader), lazy.AT_ONCE):
        numbers = range(start, min(start + lazy.AT_ONCE, len(reader)))
        for number, record in zip(numbers, reader.read(numbers), strict=True):
            image, label, found = _parse(reader, number, record, schema)
            if schema.size is None and deep_files.png_bits(image) == 16:
                deep.append(_facts(reader, number, image))
            if not 0 <= label < len(schema.classes):
                reason = f"label {label}, expected 0..{len(schema.classes) - 1}"
                raise _record_error(reader, number, ValueError(reason))
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
        Tally.count(deep, _scale(folder, deep, options)),
    )


def _facts(reader: Reader, number: int, image: bytes) -> Facts:
    try:
        return images_lib.read(image, 8)[1]
    except ValueError as error:
        raise _record_error(reader, number, error) from error


def _scale(folder: pathlib.Path, deep: Sequence[Facts], options: ReadOptions) -> str:
    if options.bits != AUTO or not deep:
        return options.bits
    try:
        return bit_depth.choose([one.values for one in deep])
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error


def _parse(reader: Reader, number: int, record: bytes, schema) -> tuple[bytes, int, dict]:
    from bloodjax.data.formats import tfds

    try:
        return tfds.parse_example(record, schema)
    except ValueError as error:
        raise _record_error(reader, number, error) from error


def _record_error(reader: Reader, number: int, error: ValueError) -> UserError:
    path = reader.shard(number).path
    return UserError(f"{path}: record {number} of the dataset cannot be read: {error}")
