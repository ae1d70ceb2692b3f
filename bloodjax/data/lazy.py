"""Images that are read when they are indexed, in place of an array that holds them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, UInt8

from bloodjax.data import images as images_lib
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.io.host_memory import host_memory

# Decoding a small image holds the interpreter lock for a good part of the time.
_MAX_THREADS = 8
# Most images that are read at once. It bounds the memory of code that iterates over all images.
AT_ONCE = 256
_IMAGES_PER_THREAD = 16  # a thread for fewer images costs more than it saves

# Bytes of a part of lazy images, unless AT_ONCE of them have more.
_PART_BYTES = 2**26

# Fraction of the memory that decoded images may take.
_MEMORY_FRACTION = 1 / 4

LoadImages = Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k size size 3"]]
ChangeImages = Callable[
    [UInt8[np.ndarray, "k before before 3"]], UInt8[np.ndarray, "k size size 3"]
]
ReadFiles = Callable[[Sequence[int]], Sequence[bytes]]


class LazyImages:
    """Looks like a uint8 array [n, size, size, 3] of RGB images; indexing it reads them.

    It takes an index along the first axis only: an integer, a slice, a mask, or integers of any
    shape, which give `[*shape, size, size, 3]`. Several threads may index it at once.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        load: LoadImages,
        indices: Int[np.ndarray, " n"],
        size: int,
        read_files: ReadFiles | None = None,
    ):
        """Selects images of a source.

        Args:
          load: Returns the images at some indices of the source.
          indices: Index of each image in the source.
          size: Height and width in pixels.
          read_files: Returns the encoded images at some indices of the source; None if the source
            stores pixels.
        """
        self._load, self._indices, self._size = load, indices, size
        self._read_files = read_files

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array that holds all images."""
        return len(self), self._size, self._size, 3

    @property
    def nbytes(self) -> int:
        """Bytes of the array that holds all images."""
        return len(self) * self._size**2 * 3

    @property
    def read_files(self) -> ReadFiles | None:
        """Function from indices into `self` to encoded images; None if the source stores pixels."""
        if self._read_files is None:
            return None
        return lambda indices: self._read_files(self._indices[np.asarray(indices, int)].tolist())

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __getitem__(self, index) -> UInt8[np.ndarray, "*shape size size 3"]:
        indices = self._indices[index]
        flat = np.atleast_1d(indices).reshape(-1)
        if len(flat) <= AT_ONCE:
            loaded = self._load(flat)
        else:
            loaded = np.empty((len(flat), *self.shape[1:]), np.uint8)
            for start in range(0, len(flat), AT_ONCE):
                loaded[start : start + AT_ONCE] = self._load(flat[start : start + AT_ONCE])
        return loaded.reshape(*np.shape(indices), *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def take(self, indices: Int[np.ndarray, " m"]) -> LazyImages:
        """The images at `indices`, without reading them."""
        return LazyImages(self._load, self._indices[indices], self._size, self._read_files)

    def concatenate(self, other: LazyImages) -> LazyImages:
        """The images of `self`, then those of `other`, without reading them.

        Raises:
          ValueError: `other` has another source.
        """
        if other._load is not self._load:
            raise ValueError("lazy images of two sources cannot be concatenated")
        indices = np.concatenate([self._indices, other._indices])
        return LazyImages(self._load, indices, self._size, self._read_files)

    def resized(self, size: int) -> LazyImages:
        """The images as `images.resize` returns them, without reading them."""
        if size == self._size:
            return self
        return self.mapped(lambda images: images_lib.resize(images, size), size)

    def mapped(self, function: ChangeImages, size: int | None = None) -> LazyImages:
        """The images after a function, without reading them.

        Args:
          function: Changes a few images [k, size, size, 3], each by itself.
          size: Height and width of its result in pixels; by default unchanged.
        """
        load = self._load
        return LazyImages(
            lambda indices: function(load(indices)), self._indices, size or self._size
        )


Images: TypeAlias = UInt8[np.ndarray, "_ size size 3"] | LazyImages


def decode_lazily(
    read_files: ReadFiles,
    n: int,
    size: int,
    to_error: Callable[[int, ValueError], Exception],
    options: ReadOptions = DEFAULTS,
) -> LazyImages:
    """Lazy images of a source that stores encoded images, as files or as records.

    Args:
      read_files: Returns the encoded images at some indices of the source.
      n: Number of images.
      size: Height and width in pixels to decode to, see `images.decode`.
      to_error: Returns the exception to raise for an index whose image cannot be decoded, given
        the index and the reason.
      options: How the images are read. With an "auto" scale, images of more than 8 bits cannot be
        decoded: their scale is that of the source.
    """

    def load(indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k size size 3"]:
        numbers = indices.tolist()
        files = read_files(numbers)
        decoded = np.empty((len(files), size, size, 3), np.uint8)

        def decode(start: int) -> None:
            for i in range(start, min(start + _IMAGES_PER_THREAD, len(files))):
                try:
                    image, _ = images_lib.read(files[i], size, options)
                    if image is None:
                        raise ValueError("it has more than 8 bits, and their scale is unknown")
                    decoded[i] = image
                except ValueError as error:
                    raise to_error(numbers[i], error) from error

        run_in_threads(decode, range(0, len(files), _IMAGES_PER_THREAD))
        return decoded

    return LazyImages(load, np.arange(n), size, read_files)


def resize(
    images: UInt8[np.ndarray, "n h w 3"] | LazyImages, size: int, fit: str = DEFAULTS.fit
) -> Images:
    """`images.resize`; lazy images, which are square, stay lazy."""
    if isinstance(images, LazyImages):
        return images.resized(size)
    return images_lib.resize(np.asarray(images), size, fit)


def take(images: Images, indices: Int[np.ndarray, " m"]) -> Images:
    """The images at `indices`; lazy images stay lazy."""
    return images.take(indices) if isinstance(images, LazyImages) else images[indices]


def concatenate(first: Images, second: Images) -> Images:
    """Concatenates two arrays, or lazy images of one source, which stay lazy."""
    if isinstance(first, LazyImages):
        return first.concatenate(second)
    return np.concatenate([first, second])


def parts(images: Images) -> Iterator[UInt8[np.ndarray, "k size size 3"]]:
    """Consecutive parts of images in memory, for code that looks at each image several times.

    Args:
      images: Any number of images. An array is one part; of no images there is one empty part.
    """
    if not isinstance(images, LazyImages):
        yield images
        return
    height, width, channels = images.shape[1:]
    step = AT_ONCE * max(1, _PART_BYTES // (AT_ONCE * height * width * channels))
    for start in range(0, max(1, len(images)), step):
        yield images[start : start + step]


def run_in_threads(function: Callable[[int], None], starts: range) -> None:
    """Calls `function` for each of `starts` in threads; raises the first error in their order."""
    if len(starts) == 1:
        function(starts[0])
        return
    workers = min(_MAX_THREADS, os.cpu_count() or 1, len(starts) or 1)
    with futures.ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(function, starts):
            pass  # the iterator raises the first error and cancels the calls that have not started


def outgrows_memory(nbytes: int) -> bool:
    """Whether `nbytes` of images are too many to hold in memory."""
    return nbytes > _MEMORY_FRACTION * host_memory()
