"""Locks between the workers of a sweep: the operating system's, on files in the sweep's folder.

A lock ends with the process that holds it, however that ends, so a trial whose lock is free has no
worker. The workers may be on several machines if these share the folder, by NFS 4 for example.
"""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import TextIO

from bloodjax.errors import UserError


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Waits for the lock on a file, which is created if missing, and holds it in the body.

    Raises:
      UserError: The file system has no locks.
    """
    with path.open("a", encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_EX)
        yield


def claim(path: pathlib.Path) -> TextIO | None:
    """Takes the lock on a file, which is created if missing; returns None if another has it.

    Returns:
      What holds the lock until it is closed, or the process ends.

    Raises:
      UserError: The file system has no locks.
    """
    file = path.open("a", encoding="utf-8")
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: TextIO, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{file.name}: {error.strerror}; expected a folder with file locks, such as a local "
            "disk or NFS 4, since the workers of a sweep need them"
        ) from error
