"""Reads images without labels at their own size, one after another."""

from __future__ import annotations

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
from bloodjax.data.spec import Kind, resolve
from bloodjax.errors import UserError

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
    if isinstance(images, LazyImages) and images.read_files is not None:
        read_files = images.read_files
        return lambda i: _decode(read_files([i])[0], bits, path, dataset.names[i])
    source = resolve(path, may_be_image=True)
    if isinstance(images, LazyImages) or source.kind == Kind.SYNTHETIC:
        return lambda i: images[i]
    if source.kind == Kind.NPZ:
        stored = npz.read_own_size(source.path, options)
        return lambda i: stored[i]
    if source.kind == Kind.IMAGE:
        return lambda i: _decode(source.path.read_bytes(), bits, path, dataset.names[i])
    archive = keep_open(source.path)
    return lambda i: _decode(archive.read(dataset.names[i]), bits, path, dataset.names[i])


def _decode(data: bytes, bits: str, path: str, name: str) -> np.ndarray:
    try:
        return images_lib.decode_whole(data, bits)[0]
    except ValueError as error:
        raise UserError(f"{path}: {name} is no longer a readable image ({error})") from error
