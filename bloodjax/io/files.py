"""Atomic writes, JSON files with one-line errors, and checks of folders and disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bloodjax import distributed
from bloodjax.errors import UserError

T = TypeVar("T")

# Errors of the system for a disk that is full or cannot be written to.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Replaces a file atomically: `path` has either its old or its new content, at any time.

    Of a symbolic link, the file that it points to is replaced.

    Args:
      path: The file to write or replace.

    Yields:
      A temporary file to write, in the same folder. It is renamed to `path` when the block ends,
      and removed if the block raises.

    Raises:
      OSError: The file cannot be written; `filename` is `path`.
    """
    real = pathlib.Path(os.path.realpath(path))
    # Two processes may replace a file at the same time.
    temporary = real.with_name(f"{real.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, real)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a failed write names no file
        raise


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file atomically, as `replacing`, and flushes it to the disk first.

    Only the primary process of a run writes; the others do nothing.

    Args:
      path: The file to write or replace.
      content: Text, written as UTF-8, or bytes. A surrogate, which the name of a file that is not
        UTF-8 has, is written as an escape such as \\udce9.

    Raises:
      OSError: The file cannot be written.
    """
    if not distributed.is_primary():
        return
    encoded = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: pathlib.Path, expected: str, parse: Callable[[Any], T]) -> T:
    """Reads a JSON file and converts its content.

    Args:
      path: The file.
      expected: What the file should contain, for the error message.
      parse: Converts the decoded JSON; may raise any exception for unexpected content.

    Returns:
      The result of `parse`.

    Raises:
      UserError: The file cannot be read, or `parse` rejects its content.
    """
    try:
        return parse(json.loads(path.read_text("utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from error
    except Exception as error:  # the type is in the message, so a bug in `parse` can be recognised
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path}: is damaged ({reason}), expected {expected}") from error


def make_folder(path: pathlib.Path) -> None:
    """Makes the folder `path` and its parents if they do not exist.

    Raises:
      UserError: The folder cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a folder to write to") from error


def check_folder(path: pathlib.Path) -> None:
    """Checks that the folder `path` can be written to, or be made, and makes nothing.

    For the start of a command that computes before it calls `make_folder`.

    Raises:
      UserError: A file is in the place of the folder or of a parent, or it is read-only.
    """
    nearest = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    where = "" if nearest == path else f"{nearest} "
    reason = None
    if not nearest.is_dir():
        reason = f"{where}is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{where}is read-only"
    if reason:
        raise UserError(f"{path}: {reason}, expected a folder to write to")


def check_file(path: pathlib.Path) -> None:
    """Checks that the file `path` can be written or replaced, and makes nothing.

    For the start of a command that computes before it calls `atomic_write`.

    Raises:
      UserError: `path` is a folder or a device, or `check_folder` refuses its parent.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise UserError(f"{path}: is {kind}, expected a file to write")
    check_folder(path.parent)


def link(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """Makes a copy of a file that takes no space where the file system has links.

    A file in the place of `target` is replaced. Neither may be changed afterwards, but be replaced.
    """
    pathlib.Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # not on this file system
        shutil.copy2(source, target)


def remove(path: pathlib.Path) -> None:
    """Removes a file, or a folder with all that is in it; neither has to exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's message with the file that it is about; all that is known if it has neither."""
    if not error.strerror:  # of `shutil.copytree`, which collects several
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def disk_full_reason(error: BaseException) -> str | None:
    """The system's message if `error` was caused by a disk that cannot be written to, else None.

    Libraries wrap the system's errors in their own, as causes or as text, so both are searched.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number in _DISK_FULL:
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                return os.strerror(number)
        cause = cause.__cause__ or cause.__context__
    return None
