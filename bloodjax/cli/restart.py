"""Restarts a command with environment variables that Python and the C library read at the start."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence

from bloodjax.cli import huge_pages

# Options of the Python interpreter that are followed by a value.
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def restart() -> None:
    """Replaces this process by one with the same command line and a better environment.

    The new process has huge pages (`huge_pages`), and UTF-8 for names of files and for text: in the
    locale C without Python's own remedy, names beyond ASCII would be stored in a form that another
    process cannot read.

    Returns, and changes nothing, if the environment is right already, as after a restart; if this
    process is not a command alone (`is_command`); or if the system refuses.
    """
    changes = huge_pages.environment() | _utf8()
    module = sys.modules["__main__"].__spec__
    if not changes or module is None or not sys.executable:
        return
    if not is_command(sys.orig_argv, sys.argv, module.name):
        return
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or None where it was closed at the start
            stream.flush()
    with contextlib.suppress(OSError):
        os.execv(sys.executable, sys.orig_argv)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def is_command(started: Sequence[str], argv: Sequence[str], module: str) -> bool:
    """Whether a process was started for a command of bloodjax and for nothing else.

    A notebook that runs a command by `%run -m`, or a script that does by `runpy`, would lose its
    memory or run twice.

    Args:
      started: Command line of the process, as in `sys.orig_argv`.
      argv: `sys.argv` of the command.
      module: Name of the module that runs as `__main__`.

    Returns:
      True for `python [OPTIONS] -m bloodjax.COMMAND ...`, `python [OPTIONS] -m bloodjax COMMAND
      ...` and the script `bloodjax COMMAND ...`.
    """
    arguments = [*argv[1:]]
    head = [*started[: len(started) - len(arguments)]]
    if not module.startswith("bloodjax.") or [*started[len(head) :]] != arguments or not head:
        return False
    options = head[1:]
    while options and options[0].startswith("-") and options[0] not in ("-m", "-c", "-"):
        del options[: 2 if options[0] in _WITH_VALUE else 1]
    match options:
        case ["-m", name]:
            return name == module
        case ["-m", "bloodjax", _]:
            return True
        case [script, _]:
            return pathlib.PurePath(script).name == "bloodjax"
    return False


def _utf8() -> dict[str, str]:
    """The environment variable for Python's UTF-8 mode, if this process uses another encoding."""
    is_utf8 = sys.getfilesystemencoding().lower().replace("-", "") == "utf8"
    if is_utf8 or sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":
        return {}
    return {"PYTHONUTF8": "1"}
