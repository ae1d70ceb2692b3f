"""A run's folder: one run of one config lives there, and one process at a time trains it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import TextIO

from bloodjax import config as config_lib
from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.errors import UserError
from bloodjax.io.files import make_folder

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
BASELINE_FILE = "baseline.json"
LOCK_FILE = "lock"
# Seconds: NFS 4 keeps the lock of a machine that is gone for about 90.
_PATIENCE = 120.0
_LOOK_EVERY = 1.0


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in `workdir`, which is made if need be.

    The lock is the system's, on the file `lock`: it vanishes with the process, however that ends.
    Reading the folder takes none. Of a run's several processes, the primary one holds it. A holder
    on another machine, or one that a run of several processes follows upon, may be ending, and a
    network's file system lets go late: these are waited for.

    Raises:
      UserError: another process holds it, or the folder cannot be written to.
    """
    make_folder(workdir)
    if not distributed.is_primary():
        yield
        return
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        _lock(file, workdir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        file.truncate(0)


def _lock(file: TextIO, workdir: pathlib.Path) -> None:
    started, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
        except OSError as error:  # a network's file system may have no locks
            console.log_info(
                f"{file.name}: {error.strerror}; see to it that one process trains here"
            )
            return
        here = holder.endswith(f" on {socket.gethostname()}")
        patience = 0.0 if here and distributed.count() == 1 else _PATIENCE
        if time.monotonic() - started >= patience:
            raise UserError(
                f"--workdir={workdir}: {holder} is training here; expected one process at a time, "
                "or another --workdir"
            )
        if not said:
            console.log_info(
                f"--workdir={workdir}: waiting for {holder} to let go, {patience:g} s at most"
            )
            said = True
        time.sleep(_LOOK_EVERY)


def open_config(config: Config, workdir: pathlib.Path) -> Config | None:
    """The config of the run that lives in `workdir`, or None where there is none yet.

    Raises:
      UserError: it is another than `config`.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return None
    stored = config_lib.read(path)
    changes = config_lib.differences(stored, config)
    if changes:
        raise UserError(
            f"--workdir={workdir}: holds a run with another config ({'; '.join(changes[:3])}); "
            "expected the same config, or another --workdir"
        )
    return config_lib.resumed(stored, config)
