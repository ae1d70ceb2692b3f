"""Another path of a folder, for orbax, which cannot write to every path.

Orbax and tensorstore take paths as text: they read `[`, `*` and `?` as patterns and a backslash as
a separator, and need UTF-8. In a folder such as `run[1]` orbax leaves out the last part of writing
a checkpoint, without an error.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from bloodjax.errors import UserError

# Paths that orbax takes as they are.
_PLAIN = re.compile(r"[A-Za-z0-9_/ .,+=@~:-]*")


@contextlib.contextmanager
def plain_path(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path of `directory` without special characters: its own, or a symbolic link.

    The link is in a temporary folder and exists while the context does.

    Args:
      directory: Absolute path of a folder, which need not exist.

    Raises:
      UserError: No link can be made.
    """
    if _PLAIN.fullmatch(os.fspath(directory)):
        yield directory
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix="bloodjax-")
    except OSError as error:
        raise UserError(
            f"{directory}: its name needs a link in a temporary folder, which cannot be made "
            f"({error.strerror}); expected a folder to write to in TMPDIR, or a --workdir of "
            "letters A to Z and digits"
        ) from error
    with temporary as folder:
        link = pathlib.Path(folder, "checkpoints")
        if not _PLAIN.fullmatch(os.fspath(link)):
            raise UserError(f"TMPDIR={tempfile.gettempdir()}: expected letters A to Z and digits")
        link.symlink_to(directory, target_is_directory=True)
        yield link
