"""A run's folder: one run of one config lives there, and one process at a time trains it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from bloodjax import logs, settings
from bloodjax.errors import UserError
from bloodjax.files import make_folder
from bloodjax.settings import Config

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in `workdir`, which is made if need be.

    The lock is the system's, on the file `lock`: it vanishes with the process, however that ends.
    Reading the folder takes none.

    Raises:
      UserError: another process holds it, or the folder cannot be written to.
    """
    make_folder(workdir)
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"--workdir={workdir}: {holder} is training here; expected one process at a time, "
                "or another --workdir"
            ) from None
        except OSError as error:  # a network's file system may have no locks
            logs.say(f"{file.name}: {error.strerror}; see to it that one process trains here")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        file.truncate(0)


def open_config(config: Config, workdir: pathlib.Path) -> Config | None:
    """The config of the run that lives in `workdir`, or None where there is none yet.

    Raises:
      UserError: it is another than `config`.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return None
    stored = settings.from_json(path.read_text("utf-8"))
    changes = settings.differences(stored, config)
    if changes:
        raise UserError(
            f"--workdir={workdir}: holds a run with another config ({'; '.join(changes[:3])}); "
            "expected the same config, or another --workdir"
        )
    return settings.resumed(stored, config)
