"""Reads images without labels at their own size, one after another."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from bloodjax.data import images as images_lib
from bloodjax.data import sources
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import npz
from bloodjax.data.formats.archive import keep_open
from bloodjax.data.lazy import LazyImages
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError
from bloodjax.io import remote

ReadImage = Callable[[int], UInt8[np.ndarray, "height width 3"]]


def reader(path: str, dataset: Dataset, options: ReadOptions = DEFAULTS) -> ReadImage:
    """A function that reads an image that `sources.load_images` returned as a square.

    Args:
      path: The source, as for `sources.load_images`.
      dataset: What that function returned.
      options: How the images were read.

    Returns:
      Function from an index in `dataset` to the RGB image at its own size, upright and with
      transparent pixels laid over white. Images of a source that stores only squares of one size,
      such as shards of pixels and rendered cells, have the size that `dataset` has.
    """
    bits = dataset.reading.tally.scale or options.bits
    images = dataset.images
    if read := sources.file_reader(path, options):
        return lambda i: _decode(read(dataset.names[i]), bits, path, dataset.names[i])
    file = pathlib.Path(os.path.expanduser(remote.local(path)))
    if isinstance(images, LazyImages) and images.read_files is not None:
        read_files = images.read_files
        return lambda i: _decode(read_files([i])[0], bits, path, dataset.names[i])
    if isinstance(images, LazyImages) or sources.synthetic_count(path) is not None:
        return lambda i: images[i]
    if file.is_file() and file.suffix.lower() == ".npz":
        stored = npz.read_own_size(file, options)
        return lambda i: stored[i]
    if file.is_file() and file.suffix.lower() != ".zip":
        return lambda i: _decode(file.read_bytes(), bits, path, dataset.names[i])
    archive = keep_open(file)
    return lambda i: _decode(archive.read(dataset.names[i]), bits, path, dataset.names[i])


def _decode(data: bytes, bits: str, path: str, name: str) -> np.ndarray:
    try:
        return images_lib.decode_whole(data, bits)[0]
    except ValueError as error:
        raise UserError(f"{path}: {name} is no longer a readable image ({error})") from error
