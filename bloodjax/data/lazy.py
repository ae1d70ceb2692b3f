"""Images that stay where they are until they are asked for, in place of an array of them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, UInt8

from bloodjax.data import images

# Decoding a small image holds the interpreter lock for a good part of the time.
_MAX_THREADS = 8
# Images read at once, at most: what bounds the memory of whoever goes through all of them.
AT_ONCE = 256
_A_THREAD_S = 16  # images; fewer are not worth a thread

# The part of the host's memory that decoded images may take.
_SHARE = 1 / 4

Load = Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k size size 3"]]
Read = Callable[[Sequence[int]], Sequence[bytes]]


class LazyImages:
    """Looks like a uint8 array [n, size, size, 3] of RGB images; indexing it reads them.

    An index along the first axis is all that it takes: a number, a slice, a mask, or whole numbers
    of any shape, which gives `[*shape, size, size, 3]`. Safe to index from several threads.

    Attributes:
      files: gives the encoded images at some places of `self`, as they lie in their source; None
        where images are not kept as files.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        load: Load,
        places: Int[np.ndarray, " n"],
        size: int,
        read: Read | None = None,
    ):
        """Images at the `places` of a source.

        Args:
          load: gives the images at places of the source.
          places: of these images, in their order.
          size: side in pixels.
          read: gives the encoded images at places of the source, if there are any.
        """
        self._load, self._places, self._size, self._read = load, places, size, read

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of an array."""
        return len(self), self._size, self._size, 3

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return len(self) * self._size**2 * 3

    @property
    def files(self) -> Read | None:
        """See the class."""
        if self._read is None:
            return None
        return lambda indices: self._read(self._places[np.asarray(indices, int)].tolist())

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __getitem__(self, index) -> UInt8[np.ndarray, "*shape size size 3"]:
        places = self._places[index]
        flat = np.atleast_1d(places).reshape(-1)
        if len(flat) <= AT_ONCE:
            found = self._load(flat)
        else:
            found = np.empty((len(flat), *self.shape[1:]), np.uint8)
            for start in range(0, len(flat), AT_ONCE):
                found[start : start + AT_ONCE] = self._load(flat[start : start + AT_ONCE])
        return found.reshape(*np.shape(places), *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def take(self, indices: Int[np.ndarray, " m"]) -> LazyImages:
        """The images at `indices`, unread."""
        return LazyImages(self._load, self._places[indices], self._size, self._read)

    def joined(self, other: LazyImages) -> LazyImages:
        """These and then those of `other`, which must be of the same source."""
        if other._load is not self._load:
            raise ValueError("images of two sources cannot be joined unread")
        places = np.concatenate([self._places, other._places])
        return LazyImages(self._load, places, self._size, self._read)

    def resized(self, size: int) -> LazyImages:
        """As `images.resize` would have them."""
        load = self._load
        if size == self._size:
            return self
        return LazyImages(lambda places: images.resize(load(places), size), self._places, size)


Images: TypeAlias = UInt8[np.ndarray, "_ size size 3"] | LazyImages


def encoded(
    read: Read, n: int, size: int, refusal: Callable[[int, ValueError], Exception]
) -> LazyImages:
    """`n` images of a source that keeps them as files, or as records that are files.

    Args:
      read: gives the files at places of the source.
      n: how many there are.
      size: side of the images in pixels, see `images.decode`.
      refusal: the exception to raise where the image at a place cannot be decoded, and why.
    """

    def load(places: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k size size 3"]:
        numbers = places.tolist()
        files = read(numbers)
        found = np.empty((len(files), size, size, 3), np.uint8)

        def decode(start: int) -> None:
            for i in range(start, min(start + _A_THREAD_S, len(files))):
                try:
                    found[i] = images.decode(files[i], size)
                except ValueError as error:
                    raise refusal(numbers[i], error) from error

        in_threads(decode, range(0, len(files), _A_THREAD_S))
        return found

    return LazyImages(load, np.arange(n), size, read)


def resize(pictures: UInt8[np.ndarray, "n h w 3"] | LazyImages, size: int) -> Images:
    """`images.resize`, of an array at once or of images that are read later."""
    if isinstance(pictures, LazyImages):
        return pictures.resized(size)
    return images.resize(np.asarray(pictures), size)


def take(pictures: Images, indices: Int[np.ndarray, " m"]) -> Images:
    """The images at `indices`; those that are unread stay so."""
    unread = isinstance(pictures, LazyImages)
    return pictures.take(indices) if unread else pictures[indices]


def joined(one: Images, other: Images) -> Images:
    """One after the other; both in memory, or both unread and of one source."""
    if isinstance(one, LazyImages):
        return one.joined(other)
    return np.concatenate([one, other])


def in_threads(function: Callable[[int], None], starts: range) -> None:
    """Calls `function` for each of `starts`; raises the first failure in their order."""
    if len(starts) == 1:
        function(starts[0])
        return
    workers = min(_MAX_THREADS, os.cpu_count() or 1, len(starts) or 1)
    with futures.ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(function, starts):
            pass  # raises the first failure, and cancels what waits


def outgrows_memory(nbytes: int) -> bool:
    """Whether so many bytes of images should not all be in memory at once."""
    return nbytes > _SHARE * host_memory()


def host_memory() -> int:
    """Bytes of memory that the host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
