"""How every command starts and ends: flags in, one line and a status out. The one door to absl."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from bloodjax.cli import huge_pages
from bloodjax.errors import Stopped, UserError
from bloodjax.io import files

__all__ = ["flags", "local_path", "local_paths", "run"]

_OVERRIDE = "--config."


def run(
    main: Callable[[list[str]], None], *, required: Sequence[str], takes_config: bool = False
) -> None:
    """Starts the process again with huge pages, parses the flags, calls `main`, and ends.

    A `UserError` is printed as one line and ends with status 2, as does a disk that takes no more;
    `Stopped` ends with 128 + signal. Anything else is a bug and keeps its traceback.

    Args:
      main: takes the config's overrides, as `"key=value"`.
      required: names of flags that must be given.
      takes_config: whether there may be any.
    """

    def parse(argv: list[str]) -> list[str]:
        rest, overrides = _split_overrides(argv) if takes_config else (argv, [])
        try:
            unknown = flags.FLAGS(rest)[1:]
        except flags.Error as error:
            raise UserError(str(error).partition("\n")[0]) from error
        for name in required:
            if flags.FLAGS[name].value in (None, ""):
                raise UserError(f"--{name} is missing; --help says what it is")
        if unknown:
            raise UserError(f"unexpected argument {unknown[0]!r}: expected --flag=value only")
        return [argv[0], *overrides]

    def quietly(argv: list[str]) -> None:
        # Orbax tells of every step that it takes, and at length of the errors that it raises.
        logging.set_verbosity(logging.FATAL)
        main(argv[1:])

    huge_pages.restart()
    from bloodjax.cli import console  # takes a second, which a restart would spend twice

    console.route_warnings()
    try:
        app.run(quietly, flags_parser=parse)
    except UserError as error:
        sys.exit(_end(f"error: {error}", 2))
    except Stopped as error:
        sys.exit(_end(str(error), 128 + error.signal))
    except OSError as error:
        why = files.disk_full_reason(error)
        if why is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_end(f"error: {where}{why}; what was saved before is whole", 2))
    except KeyboardInterrupt:
        sys.exit(_end("stopped", 130))


def local_path(flag: str) -> pathlib.Path:
    """The value of `--flag` as a path.

    Raises:
      UserError: it is a remote one, such as gs://bucket/folder.
    """
    return _local(flag, flags.FLAGS[flag].value)


def local_paths(flag: str) -> list[pathlib.Path]:
    """The values of a flag that may be repeated, or list several with commas between them.

    Raises:
      UserError: one is a remote path, or none is left.
    """
    values = [text for value in flags.FLAGS[flag].value for text in value.split(",") if text]
    if not values:
        raise UserError(f"--{flag} is missing; --help says what it is")
    return [_local(flag, value) for value in values]


def _local(flag: str, value: str) -> pathlib.Path:
    if "://" in value:
        raise UserError(f"--{flag}={value}: this version takes local paths only")
    return pathlib.Path(value).expanduser()


def _end(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Parts `--config.key=value` and `--config.key value` from the other arguments."""
    rest, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith(_OVERRIDE):
            rest.append(argument)
            continue
        override = argument.removeprefix(_OVERRIDE)
        if "=" not in override:
            override += "=" + next(arguments, "")
        overrides.append(override)
    return rest, overrides
