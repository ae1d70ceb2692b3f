"""How every command starts and ends: flags and `--help`, exit statuses. The one door to absl."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import pathlib
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging

from bloodjax.cli import restart
from bloodjax.errors import Stopped, UserError, did_you_mean, handling_ignored
from bloodjax.io import bucket_urls, files, staging

__all__ = ["COLUMNS", "IMAGES", "flags", "local_path", "local_paths", "run"]

# Help of two flags that several commands have, on how to read a table of labels.
COLUMNS = "KIND=NAME,...: What a table's columns mean, such as path=image_id,label=dx."
IMAGES = "PATH: Folder or .zip of a table's images. By default beside the table."

_OVERRIDE = "--config."
_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}
_WIDTH = 96  # columns of --help
_FLAG_WIDTH = 28
_SPEC = (
    "SPEC: FILE.npz, a table (.csv), a .zip or folder of <class>/<image>, tfds:NAME,\n"
    "hf-dataset:NAME or synthetic[:N]; files and folders also in a bucket (gs://, s3://)."
)


def run(
    main: Callable[[list[str]], None],
    *,
    required: Sequence[str],
    name: str = "",
    takes_config: bool = False,
    example: str = "",
) -> None:
    """Parses the flags, restarts the process with huge pages, calls `main`, and exits.

    NumPy's linear algebra gets one thread, unless the environment says how many.

    The restart replaces this process by one with the same command line and another environment,
    before anything but the flags has been read. `restart.restart` says when.

    `--help` prints the first line of the docstring of `main`'s module, the flags and the example,
    and exits with status 0. A `UserError`, a full disk or a file that may not be read or written is
    printed as one line, with status 2; `Stopped` exits with 128 + signal, and a closed standard
    output with 128 + SIGPIPE. Any other exception is a bug and keeps its traceback.

    Args:
      main: Called with the config overrides, as `"key=value"`.
      required: Names of flags that must be given.
      name: The command as in `bloodjax NAME`; by default the name of the script.
      takes_config: Whether `--config.key=value` overrides are allowed.
      example: Arguments for the example in `--help`.
    """
    _open_streams()
    name = name or pathlib.Path(sys.argv[0]).stem
    if _HELP.intersection(sys.argv[1:]):
        print(_help(name, main, required, takes_config, example))
        sys.exit(0)
    try:
        overrides = _parse(sys.argv, main, required, takes_config)
    except UserError as error:
        sys.exit(_end(f"error: {error}", 2))
    restart.restart()
    # NumPy reads this when it is imported. Its threads wait for each other in loops: on two cores
    # fits of `metrics.novelty` are as fast with one, and several times faster beside other work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with _interrupt_ends_at_once():
        import numpy  # noqa: F401

        from bloodjax.cli import console  # takes half a second, which a restart would spend twice

    console.show_lines()
    # Other libraries' messages: orbax logs every step that it takes, and each error at length.
    logging.use_absl_handler()
    logging.set_verbosity(logging.FATAL)
    with contextlib.suppress(Exception):  # stderr may be closed
        faulthandler.enable()
    try:
        with handling_ignored(_interrupt_again), staging.opened():
            main(overrides)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        # Python flushes both once more at exit, which would raise again.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        sys.exit(_end(f"error: {error}", 2))
    except Stopped as error:
        sys.exit(_end(str(error), 128 + error.signal))
    except OSError as error:
        why = files.disk_full_reason(error)
        where = f"{error.filename}: " if error.filename else ""
        if why is not None:
            sys.exit(_end(f"error: {where}{why}; what was saved before is intact", 2))
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            sys.exit(_end(f"error: {where}{error.strerror}, expected another path", 2))
        if not isinstance(error, PermissionError):
            raise
        sys.exit(_end(f"error: {where}{error.strerror}, expected leave to read or write it", 2))
    except KeyboardInterrupt:
        sys.exit(_end("stopped", 130))
    sys.exit(0)


def local_path(flag: str) -> pathlib.Path:
    """The value of `--flag` as a path; of one in a bucket, that of a local copy (`io.staging`).

    `--workdir` is a run to read, and any other flag names an output. What was written is uploaded
    when the command has succeeded.

    Raises:
      UserError: The flag is given more than once, the bucket cannot be read, or the URL is not one
        of a bucket.
    """
    found = flags.FLAGS[flag]
    if found.present > 1:  # absl keeps the last one
        raise UserError(
            f"--{flag}={found.value}: --{flag} is given {found.present} times, expected one"
        )
    return _local(flag, found.value)


def local_paths(flag: str) -> list[pathlib.Path]:
    """The paths in a flag that may be repeated, as `local_path`. A comma is part of a name.

    Raises:
      UserError: A path is empty; it does not exist, but what its commas separate does; or as
        `local_path`.
    """
    return [_local_of_several(flag, value) for value in flags.FLAGS[flag].value]


def _local_of_several(flag: str, value: str) -> pathlib.Path:
    if not value:
        raise UserError(f"--{flag} is missing; --help says what it is")
    path = _local(flag, value)
    if bucket_urls.is_remote(value):
        return path
    parts = [_local(flag, part) for part in value.split(",") if part]
    if len(parts) > 1 and not os.path.lexists(path) and all(map(os.path.lexists, parts)):
        repeated = " ".join(f"--{flag}={part}" for part in value.split(",") if part)
        raise UserError(
            f"--{flag}={value}: no such folder; a comma is part of a name, expected {repeated}"
        )
    return path


def _local(flag: str, value: str) -> pathlib.Path:
    try:
        return staging.open_run(value) if flag == "workdir" else staging.open_output(value)
    except UserError as error:
        raise UserError(f"--{flag}={error}") from error


def _open_streams() -> None:
    """Makes the standard streams usable: open, and able to print every name.

    Where a stream was closed before the start, the next file to be opened would get its number, and
    the messages of C libraries would be written into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # inherited by a restart
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a notebook's stream has no such method
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _interrupt_ends_at_once() -> Iterator[None]:
    """Within it, SIGINT ends the process with one line, before anything was begun.

    A `KeyboardInterrupt` in the import of NumPy's extensions is printed there and replaced by an
    `ImportError`; it can also crash them.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a shell ignores it for what is in the background
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_end("stopped", 130)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_again(error: BaseException | None) -> bool:
    """Raises a `KeyboardInterrupt` that Python ignored once more, in the main thread."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    # From another thread and a little later, when the callback has ended.
    main = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    return True


def _end(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be a full disk or a closed terminal
        print(message, file=sys.stderr, flush=True)
    return status


def _parse(
    argv: list[str],
    main: Callable[[list[str]], None],
    required: Sequence[str],
    takes_config: bool,
) -> list[str]:
    """Sets the flags from the command line; returns the config overrides, as `"key=value"`."""
    rest, overrides = _split_overrides(argv) if takes_config else (argv, [])
    try:
        unexpected = flags.FLAGS(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        group, dot, key = error.flagname.partition(".")
        known = [flag.name for flag in _flags_of(main)]
        flag = key.rpartition(".")[2]
        if group == "config" and not takes_config and flag in known:
            raise UserError(
                f"unknown flag --{error.flagname}: this command takes --{flag} in place of the "
                "config's key"
            ) from error
        # Of a misspelt --config.key, only the first word is a flag's name.
        hint = did_you_mean(group, known, f"--{{}}{dot}{key}")
        raise UserError(f"unknown flag --{error.flagname}: {hint}") from error
    except flags.Error as error:
        raise UserError(str(error).partition("\n")[0]) from error
    for name in required:
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--{name} is missing; --help says what it is")
    if unexpected:
        raise UserError(f"unexpected argument {unexpected[0]!r}: expected --flag=value only")
    return overrides


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key=value` and `--config.key value` from the other arguments."""
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


def _flags_of(main: Callable[[list[str]], None]) -> list[flags.Flag]:
    """The flags that the module of `main` defines."""
    module = sys.modules[main.__module__]
    return flags.FLAGS.flags_by_module_id_dict().get(id(module), [])


def _help(
    name: str,
    main: Callable[[list[str]], None],
    required: Sequence[str],
    takes_config: bool,
    example: str,
) -> str:
    """The text of `--help`, for one screen."""
    shown = [flag for flag in _flags_of(main) if not flag.help.startswith("Former name")]
    rows = [_help_row(flag) for flag in shown]
    values = {flag.removeprefix("--").partition("=")[0]: flag for flag, _ in rows}
    usage = ["usage: bloodjax", name, *(values[flag] for flag in required)]
    if takes_config:
        rows.append(("--config.KEY=VALUE", "Sets a config key, such as --config.batch_size=32."))
    if rows:
        usage.append("[--flag=value ...]")
    lines = [" ".join(usage), ""]
    lines += textwrap.wrap((main.__globals__["__doc__"] or "").partition("\n")[0], _WIDTH)
    lines += [""] * bool(rows)
    width = min(_FLAG_WIDTH, max((len(flag) for flag, _ in rows), default=0) + 4)
    for flag, text in rows:
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"  {flag}  ".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
    if any("SPEC" in flag for flag, _ in rows):
        lines += ["", _SPEC]
    if example:
        lines += ["", f"Example:\n  bloodjax {name} {example}"]
    return "\n".join(lines)


def _help_row(flag: flags.Flag) -> tuple[str, str]:
    """A flag with a placeholder for its value, and what it does.

    The help of a flag starts with the placeholder: `"DIR: Folder of the run."`; that of an
    enumeration, with its values, which absl puts there. A flag that is on or off takes no value.
    """
    if flag.boolean:
        return f"--{flag.name}", flag.help
    text = flag.help.partition(";\n")[0]  # absl adds that a flag can be repeated
    placeholder, _, text = text.partition(": ")
    if flag.default not in (None, "", []):
        text = f"{text.removesuffix('.')} (default {flag.default})."
    return f"--{flag.name}={placeholder.strip('<>')}", text
