"""Numbered records in ArrayRecord files. The one module that imports array_record.

A file keeps a checksum with every record, so that a damaged one is an error and never other pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import threading
from collections.abc import Sequence

import numpy as np

from bloodjax.errors import UserError

# A record a group: any of them can be read alone. Images hardly get smaller by compression, and
# raw pixels are read three times as fast without it.
_WRITE = "group_size:1,uncompressed"
# Nothing is read ahead, as what is next is anywhere.
_READ = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 32768  # bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a set.

    Attributes:
      path: the file.
      records: how many it holds.
    """

    path: pathlib.Path
    records: int


class Reader:
    """The records of several shards under one count, in the order of the shards.

    Safe to use from several threads; a shard is opened when something of it is first asked for.
    """

    def __init__(self, shards: Sequence[Shard]):
        self._shards = tuple(shards)
        self._ends = np.array([*itertools.accumulate(shard.records for shard in shards)], np.int64)
        self._open = [None] * len(self._shards)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """The records of these `numbers`, in their order.

        Raises:
          UserError: a shard is missing or damaged, or holds more or fewer records than it should.
        """
        shards = np.searchsorted(self._ends, np.asarray(numbers, np.int64), side="right").tolist()
        found = []
        for number, i in zip(numbers, shards, strict=True):
            reader = self._open[i] or self._opened(i)
            place = int(number) - int(self._ends[i]) + self._shards[i].records
            try:
                # One at a time: for several, its threads take twice the processor's time.
                found += reader.read([place])
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                raise _damaged(self._shards[i].path, error) from error
        return found

    def shard(self, number: int) -> Shard:
        """Where the record of this `number` lies."""
        return self._shards[int(np.searchsorted(self._ends, number, side="right"))]

    def _opened(self, i: int):
        with self._lock:
            if self._open[i] is None:
                self._open[i] = _open(self._shards[i])
            return self._open[i]


class Writer:
    """Writes records to a new file, one after the other; `close` makes it whole."""

    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_module

        self._path = path
        try:
            self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITE)
        except (RuntimeError, ValueError) as error:
            raise _unwritten(path, error) from error

    def write(self, record: bytes) -> None:
        """Adds a record.

        Raises:
          UserError: the disk does not take it.
        """
        try:
            self._writer.write(record)
        except (RuntimeError, ValueError) as error:
            raise _unwritten(self._path, error) from error

    def close(self) -> None:
        """Ends the file.

        Raises:
          UserError: the disk does not take it.
        """
        try:
            self._writer.close()
        except (RuntimeError, ValueError) as error:
            raise _unwritten(self._path, error) from error


def _open(shard: Shard):
    # Takes its time, and most runs do without.
    from array_record.python import array_record_module

    if not shard.path.is_file():
        raise UserError(f"{shard.path}: no such file, expected a shard of {shard.records} records")
    try:
        reader = array_record_module.ArrayRecordReader(
            str(shard.path), _READ, file_reader_buffer_size=_BUFFER
        )
        found = reader.num_records()
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _damaged(shard.path, error) from error
    if found != shard.records:
        raise UserError(f"{shard.path}: holds {found} records, expected {shard.records}")
    return reader


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path}: is damaged ({_short(error)}), expected a whole ArrayRecord file")


def _unwritten(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be written ({_short(error)}), expected space on the disk")


def _short(error: Exception) -> str:
    """The first thing that array_record says, without what it says of itself."""
    return re.split(r";| \[| \(computed", str(error))[0][:120]
