"""Files that are never seen half-written, in folders that can be written to, and read with care."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

from bloodjax import distributed
from bloodjax.errors import UserError

T = TypeVar("T")

# What the system says where a disk takes no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a text, or bytes, beside `path` first and then puts it in its place, at once.

    The content is on the disk before it takes the place of what was there. Of a run's several
    processes, the primary one does.
    """
    if not distributed.is_primary():
        return
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_json(path: pathlib.Path, expected: str, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the content of a JSON file.

    Args:
      path: the file.
      expected: what it should be, for the message.
      parse: takes the content, and may fail in any way on one of another form.

    Raises:
      UserError: the file cannot be read, or is damaged.
    """
    try:
        return parse(json.loads(path.read_text("utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from error
    except Exception as error:  # ours in `parse` show as well, by their type
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path}: is damaged ({reason}), expected {expected}") from error


def make_folder(path: pathlib.Path) -> None:
    """Makes the folder `path`, and those above it, where they are missing.

    Raises:
      UserError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a folder to write to") from error


def disk_full_reason(error: BaseException) -> str | None:
    """In the system's words why a disk took no more, if that is behind `error`; else None.

    Libraries wrap the system's errors in their own, as causes or as text.
    """
    seen: BaseException | None = error
    while seen is not None:
        for number in _NO_ROOM:
            if getattr(seen, "errno", None) == number or os.strerror(number) in str(seen):
                return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None
