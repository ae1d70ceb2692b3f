"""Files that are never seen half-written, in folders that can be written to."""

from __future__ import annotations

import os
import pathlib
import tempfile

from bloodjax import distributed
from bloodjax.errors import UserError


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a text, or bytes, beside `path` first and then puts it in its place, at once.

    Of a run's several processes, the primary one does.
    """
    if not distributed.is_primary():
        return
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(unfinished, path)


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
