"""Reads and writes records in ArrayRecord files. The only module that imports array_record.

A file stores a checksum with every record, so a damaged record is an error and never wrong pixels.

`Reader` takes the place of `array_record`'s own ArrayRecordDataSource. One record at a time they
read equally fast (50,000 records of 27 kB per second on two cores); for several at once, the data
source uses twice the processor time per record. It does not check how many records a shard has,
and its errors do not name the shard, so we would need the shard of each record anyway.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import threading
from collections.abc import Sequence

import numpy as np

from bloodjax.cli.console import counted
from bloodjax.errors import UserError

# Groups of one record allow random access. Compression hardly shrinks images, and pixels
# are read three times as fast without it.
_WRITE = "group_size:1,uncompressed"
# Reading ahead does not help random access.
_READ = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 32768  # bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a dataset.

    Attributes:
      path: The file.
      records: Number of its records.
    """

    path: pathlib.Path
    records: int


class Reader:
    """Random access to the records of several shards, numbered in the order of the shards.

    Several threads may read at once. A shard is opened when one of its records is first read.
    """

    def __init__(self, shards: Sequence[Shard]):
        self._shards = tuple(shards)
        self._ends = np.array([*itertools.accumulate(shard.records for shard in shards)], np.int64)
        self._readers = [None] * len(self._shards)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Reads the records with these `numbers`, in this order.

        Raises:
          UserError: A shard is missing or damaged, or has the wrong number of records.
        """
        shards = np.searchsorted(self._ends, np.asarray(numbers, np.int64), side="right").tolist()
        records = []
        for number, i in zip(numbers, shards, strict=True):
            reader = self._readers[i] or self._open_shard(i)
            position = int(number) - int(self._ends[i]) + self._shards[i].records
            try:
                # One at a time: for several, the reader uses twice the processor time.
                records += reader.read([position])
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                raise _read_error(self._shards[i].path, error) from error
        return records

    def shard(self, number: int) -> Shard:
        """The shard that contains the record `number`."""
        return self._shards[int(np.searchsorted(self._ends, number, side="right"))]

    def _open_shard(self, i: int):
        with self._lock:
            if self._readers[i] is None:
                self._readers[i] = _open(self._shards[i])
            return self._readers[i]


class Writer:
    """Writes records to a new file, which is complete once `close` has returned."""

    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_module

        self._path = path
        try:
            self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITE)
        except (RuntimeError, ValueError) as error:
            raise _write_error(path, error) from error

    def write(self, record: bytes) -> None:
        """Appends a record.

        Raises:
          UserError: The file cannot be written.
        """
        try:
            self._writer.write(record)
        except (RuntimeError, ValueError) as error:
            raise _write_error(self._path, error) from error

    def close(self) -> None:
        """Writes what is buffered and closes the file.

        Raises:
          UserError: The file cannot be written.
        """
        try:
            self._writer.close()
        except (RuntimeError, ValueError) as error:
            raise _write_error(self._path, error) from error


def _open(shard: Shard):
    # Imported here because it is slow to import and most runs do not need it.
    from array_record.python import array_record_module

    if not shard.path.is_file():
        raise UserError(f"{shard.path}: no such file, expected {counted(shard.records, 'record')}")
    try:
        reader = array_record_module.ArrayRecordReader(
            str(shard.path), _READ, file_reader_buffer_size=_BUFFER
        )
        found = reader.num_records()
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _read_error(shard.path, error) from error
    if found != shard.records:
        raise UserError(
            f"{shard.path}: contains {counted(found, 'record')}, expected {shard.records:,}"
        )
    return reader


def _read_error(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path}: is damaged ({_short(error)}), expected a complete ArrayRecord file")


def _write_error(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be written ({_short(error)}), expected space on the disk")


def _short(error: Exception) -> str:
    """The first part of array_record's message, without its details of the implementation."""
    return re.split(r";| \[| \(computed", str(error))[0][:120]
