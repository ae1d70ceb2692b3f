"""A data set -> ArrayRecord shards that `packed.read`, and tensorflow_datasets, can read."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from bloodjax.data import images, lazy, sources
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import array_record, tfds
from bloodjax.data.formats.records import Shard, Writer
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError
from bloodjax.io.files import make_folder

# Images a shard, unless their number is given.
PER_SHARD = 8192

_NAME = "cells"
_OURS = re.compile(rf"{_NAME}-\w+\.array_record-\d+-of-\d+|index\.json|[\w.]+\.(json|txt)")
# At which images that stay as they are get decoded, to see that they can be.
_ANY_SIZE = 96


def read(
    spec: str,
    image_size: int | None = None,
    *,
    bad_images: Literal["fail", "skip"] = "fail",
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> Dataset:
    """What `spec` holds, unread where that can be, to be packed.

    Args:
      spec: a SPEC.
      image_size: side of the images; None leaves their files, or their pixels, as they are.
      bad_images: as for `sources.load`.
      class_names: as for `sources.load`.
      seed: of rendered cells.

    Raises:
      UserError: the source cannot be read, or its images have no size of their own.
    """
    if image_size is None and spec.startswith("synthetic"):
        raise UserError(f"{spec}: rendered cells have no size of their own, expected --image_size")
    return sources.load(
        spec,
        image_size or sources.own_side(spec) or _ANY_SIZE,
        bad_images=bad_images,
        class_names=class_names,
        seed=seed,
        unread=True,
    )


def pack(
    dataset: Dataset,
    out: pathlib.Path,
    *,
    as_pixels: bool,
    shards: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes the data set to the folder `out`, which is no set before all of it is there.

    The same data set gives the same bytes. Few images are in memory at a time, if `dataset` is
    unread.

    Args:
      dataset: what to pack; names, classes, splits and groups are kept, and the order.
      out: a new or empty folder, or what an earlier call did not finish.
      as_pixels: keep pixels of the images' present size, which are the fastest to read. Otherwise
        their files as they are (of other formats than PNG and JPEG a PNG at full size), or a PNG
        of those that have none.
      shards: files that each split is shared out to; by default one for every 8,192 images.
      progress: told how many images are done.

    Raises:
      UserError: `out` holds something else, or cannot be written to; or an image cannot be read.
    """
    odd = [name for name in dataset.classes if name != name.strip() or len(name.splitlines()) != 1]
    if odd:  # features.json's list of classes is a line each
        raise UserError(
            f"--out={out}: cannot keep the class {odd[0]!r}, expected names of one line"
        )
    unfinished = _claim(out)
    splits = [tfds.split_name(split) for split in dataset.splits]
    of_split, records = _numbered(splits)
    writers = {
        split: _Split(out, split, count, _shards(count, shards))
        for split, count in of_split.items()
    }
    done = 0
    for i, image in enumerate(encoded(dataset, as_pixels)):
        label, name, group = int(dataset.labels[i]), dataset.names[i], dataset.groups[i]
        writers[splits[i]].write(tfds.example(image, label, name, group))
        if (done := i + 1) % lazy.AT_ONCE == 0:
            progress(done)
    progress(done)
    written = {split: writer.shards for split, writer in writers.items()}
    side = dataset.images.shape[1] if as_pixels else None
    tfds.describe(out, _NAME, tfds.features(dataset.classes, side), written)
    told = {shard.path.name: _told(shard) for of in written.values() for shard in of}
    array_record.write_index(out / array_record.INDEX, told, dataset, records)
    unfinished.unlink()


def _claim(out: pathlib.Path) -> pathlib.Path:
    """Makes `out` ready, and says of it that it is unfinished; gives what says so."""
    unfinished = out / array_record.UNFINISHED
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = unfinished.exists() and all(
        _OURS.fullmatch(name) or name == array_record.UNFINISHED for name in held
    )
    if held and not ours:
        raise UserError(f"--out={out}: holds {held[0]}, expected a new or an empty folder")
    make_folder(out)
    unfinished.touch()
    for name in held:
        if name != array_record.UNFINISHED:
            (out / name).unlink()
    return unfinished


def _numbered(splits: Sequence[str]) -> tuple[dict[str, int], Int[np.ndarray, " n"]]:
    """How many images each split has, and the number of each image's record."""
    names, split_of = np.unique(splits, return_inverse=True)
    counts = np.bincount(split_of, minlength=len(names))
    records = np.empty(len(splits), np.int64)
    records[np.argsort(split_of, kind="stable")] = np.arange(len(splits))
    return dict(zip(names.tolist(), counts.tolist(), strict=True)), records


def _shards(count: int, wanted: int | None) -> int:
    return min(count, wanted) if wanted else -(-count // PER_SHARD)


@dataclasses.dataclass
class _Split:
    """The files of a split, filled one after the other, in equal parts."""

    folder: pathlib.Path
    split: str
    count: int
    n: int

    def __post_init__(self):
        self.shards: list[Shard] = []
        self._writer, self._left = None, 0

    def write(self, record: bytes) -> None:
        """Adds a record; the last of a shard ends it."""
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


def encoded(dataset: Dataset, as_pixels: bool) -> Iterator[bytes]:
    """The images as records keep them, in the data set's order."""
    pictures, n = dataset.images, len(dataset)
    files = pictures.files if isinstance(pictures, LazyImages) else None
    for start in range(0, n, lazy.AT_ONCE):
        numbers = range(start, min(start + lazy.AT_ONCE, n))
        if as_pixels:
            yield from (picture.tobytes() for picture in pictures[start : numbers.stop])
        elif files is not None:
            yield from map(images.as_png_or_jpeg, files(numbers))
        else:
            yield from _as_png(pictures[start : numbers.stop])


def _as_png(pictures: np.ndarray) -> list[bytes]:
    found = [b""] * len(pictures)

    def encode(i: int) -> None:
        found[i] = images.encode_png(pictures[i])

    lazy.in_threads(encode, range(len(pictures)))
    return found


def _told(shard: Shard) -> dict[str, int | str]:
    with shard.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"records": shard.records, "bytes": shard.path.stat().st_size, "sha256": digest}
