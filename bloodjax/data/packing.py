"""Writes a dataset as ArrayRecord shards, which tensorflow_datasets can read as well."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from bloodjax.data import images, lazy, sources
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import array_record, tfds
from bloodjax.data.formats.records import Shard, Writer
from bloodjax.data.lazy import LazyImages
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions
from bloodjax.data.spec import synthetic_count
from bloodjax.errors import UserError
from bloodjax.io.files import make_folder

# Images per shard by default.
IMAGES_PER_SHARD = 8192

_NAME = "cells"
_OWN_FILE = re.compile(rf"{_NAME}-\w+\.array_record-\d+-of-\d+|index\.json|[\w.]+\.(json|txt)")
# Size in pixels at which images are decoded when only whether they can be decoded matters.
_CHECK_SIZE = 96


def load_source(
    spec: str,
    image_size: int | None = None,
    *,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> Dataset:
    """Loads a source to be packed, as lazy images if it supports them.

    Args:
      spec: A SPEC.
      image_size: Height and width in pixels; None keeps the encoded images, or the pixels, of the
        source.
      options: How the images are read.
      class_names: As for `sources.load`.
      seed: Random seed of synthetic images.

    Raises:
      UserError: The source cannot be read, or its images have no native size.
    """
    if image_size is None and synthetic_count(spec) is not None:
        raise UserError(f"{spec}: synthetic images have no native size, expected --image_size")
    return sources.load(
        spec,
        image_size or sources.native_size(spec) or _CHECK_SIZE,
        options=options,
        class_names=class_names,
        seed=seed,
        lazy=True,
    )


def pack(
    dataset: Dataset,
    out: pathlib.Path,
    *,
    as_pixels: bool,
    fit: str = DEFAULTS.fit,
    shards: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes a dataset to the folder `out`, which is marked as unfinished until all is written.

    The same dataset gives the same bytes. At most `lazy.AT_ONCE` lazy images are in memory.

    Args:
      dataset: The dataset; its order, names, classes, splits and groups are kept.
      out: A new or empty folder, or one that an earlier call did not finish.
      as_pixels: Whether to store pixels at the images' present size, which are the fastest to
        read. Otherwise PNG and JPEG files of 8 bits are stored unchanged, other files as PNG at
        full size, and images that have no file as PNG.
      fit: How the images were made squares, if pixels are stored.
      shards: Number of files per split; by default one for every 8,192 images.
      progress: Called with the number of images that are done.

    Raises:
      UserError: `out` contains other files or cannot be written to, or an image cannot be read.
    """
    if dataset.is_multi_label:
        raise UserError(
            f"{dataset.reading.spec}: its images have any number of labels, expected one class "
            "each, which is what shards store"
        )
    multiline = [
        name for name in dataset.classes if name != name.strip() or len(name.splitlines()) != 1
    ]
    if multiline:  # features.json lists the classes with one line each
        raise UserError(
            f"--out={out}: cannot store the class {multiline[0]!r}, expected names of one line"
        )
    unfinished = _prepare_folder(out)
    splits = [tfds.split_name(split) for split in dataset.splits]
    counts, records = _number_records(splits)
    writers = {
        split: _ShardWriter(out, split, count, _shard_count(count, shards))
        for split, count in counts.items()
    }
    done = 0
    for i, image in enumerate(encode(dataset, as_pixels)):
        label, name, group = int(dataset.labels[i]), dataset.names[i], dataset.groups[i]
        writers[splits[i]].write(tfds.encode_example(image, label, name, group))
        if (done := i + 1) % lazy.AT_ONCE == 0:
            progress(done)
    progress(done)
    written = {split: writer.shards for split, writer in writers.items()}
    side = dataset.images.shape[1] if as_pixels else None
    tfds.write_metadata(out, _NAME, tfds.features(dataset.classes, side), written)
    metadata = {s.path.name: _metadata(s) for shards in written.values() for s in shards}
    fit = fit if as_pixels else ""
    array_record.write_index(out / array_record.INDEX, metadata, dataset, records, fit)
    unfinished.unlink()


def _prepare_folder(out: pathlib.Path) -> pathlib.Path:
    """Makes or empties the folder `out`, and returns the file that marks it as unfinished."""
    unfinished = out / array_record.UNFINISHED
    files = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    is_own = unfinished.exists() and all(
        _OWN_FILE.fullmatch(name) or name == array_record.UNFINISHED for name in files
    )
    if files and not is_own:
        raise UserError(f"--out={out}: contains {files[0]}, expected a new or an empty folder")
    make_folder(out)
    unfinished.touch()
    for name in files:
        if name != array_record.UNFINISHED:
            (out / name).unlink()
    return unfinished


def _number_records(splits: Sequence[str]) -> tuple[dict[str, int], Int[np.ndarray, " n"]]:
    """The number of images in each split, and the number of each image's record."""
    names, split_of = np.unique(splits, return_inverse=True)
    counts = np.bincount(split_of, minlength=len(names))
    records = np.empty(len(splits), np.int64)
    records[np.argsort(split_of, kind="stable")] = np.arange(len(splits))
    return dict(zip(names.tolist(), counts.tolist(), strict=True)), records


def _shard_count(images: int, requested: int | None) -> int:
    return min(images, requested) if requested else -(-images // IMAGES_PER_SHARD)


@dataclasses.dataclass
class _ShardWriter:
    """Writes the records of a split to `n` shards of equal size, one shard after another."""

    folder: pathlib.Path
    split: str
    count: int
    n: int

    def __post_init__(self):
        self.shards: list[Shard] = []
        self._writer, self._left = None, 0

    def write(self, record: bytes) -> None:
        """Adds a record, and closes the shard if it is now full."""
        if self._writer is None:
            i = len(self.shards)
            path = self.folder / tfds.shard_name(_NAME, self.split, i, self.n)
            self._left = self.count * (i + 1) // self.n - self.count * i // self.n
            self.shards.append(Shard(path, self._left))
            self._writer = Writer(path)
        self._writer.write(record)
        self._left -= 1
        if self._left == 0:
            self._writer.close()
            self._writer = None


def encode(dataset: Dataset, as_pixels: bool) -> Iterator[bytes]:
    """Yields each image as a record stores it, in the order of the dataset."""
    pixels, n = dataset.images, len(dataset)
    read_files = pixels.read_files if isinstance(pixels, LazyImages) else None
    for start in range(0, n, lazy.AT_ONCE):
        numbers = range(start, min(start + lazy.AT_ONCE, n))
        if as_pixels:
            yield from (image.tobytes() for image in pixels[start : numbers.stop])
        elif read_files is not None:
            scale = dataset.reading.tally.scale or AUTO
            convert = functools.partial(images.as_png_or_jpeg, bits=scale)
            yield from _in_threads(convert, read_files(numbers))
        else:
            yield from _in_threads(images.encode_png, pixels[start : numbers.stop])


def _in_threads(convert: Callable[[Any], bytes], values: Sequence | np.ndarray) -> list[bytes]:
    converted = [b""] * len(values)

    def convert_one(i: int) -> None:
        converted[i] = convert(values[i])

    lazy.run_in_threads(convert_one, range(len(values)))
    return converted


def _metadata(shard: Shard) -> dict[str, int | str]:
    with shard.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"records": shard.records, "bytes": shard.path.stat().st_size, "sha256": digest}
