"""The folder of a run: locked by the process that trains it, opened by those that read it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import TextIO

import jax.numpy as jnp
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import distributed
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Average, Metrics, RunProgress, TrainState
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import check_new_run
from bloodjax.errors import UserError
from bloodjax.io import processes
from bloodjax.io.files import make_folder
from bloodjax.training.executor import JitExecutor, PmapExecutor

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
BASELINE_FILE = "baseline.json"
# Only a run that `bloodjax adapt` made has it.
ADAPTATION_FILE = "adaptation.json"
# Only a sweep has it.
SWEEP_FILE = "sweep.json"
LOCK_FILE = "lock"
# Seconds to wait for the lock. NFS 4 keeps the lock of a machine that is gone for about 90 s.
_PATIENCE = 120.0
_RETRY_SECONDS = 1.0


def check_apart(config: Config, workdir: pathlib.Path) -> None:
    """Checks that a new run does not write into a folder of images, which it would change.

    Args:
      config: Config of the run.
      workdir: Folder of the run.

    Raises:
      UserError: `workdir` is the folder of a split, or in it, and has no run yet.
    """
    if (workdir / CONFIG_FILE).exists():
        return
    here = workdir.resolve()
    for split in ("train", "validation", "test"):
        spec = getattr(config.data, split)
        folder = pathlib.Path(os.path.expanduser(spec)) if spec else None
        if folder and folder.is_dir() and here.is_relative_to(folder.resolve()):
            raise UserError(
                f"--workdir={workdir}: is in the folder of config.data.{split}={spec}, expected a "
                "folder elsewhere"
            )


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in `workdir`, which is created if missing.

    It is an operating system's lock on the file `lock`, and ends with the process. Reading the
    folder needs no lock. In a run of several processes, the primary one holds the lock. A holder on
    another machine, or before a run of several processes, may be exiting, and network file systems
    release locks late: then this function waits for up to two minutes.

    A folder that was missing and gets no other file, as when the data cannot be read, is removed.

    Args:
      workdir: Folder of the run.

    Raises:
      UserError: Another process holds the lock, or the folder cannot be written to.
    """
    is_new = not workdir.exists()
    make_folder(workdir)
    if not distributed.is_primary():
        yield
        return
    path = workdir / LOCK_FILE
    with _locked(path, workdir) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.write(f"{json.dumps(processes.identity(os.getpid()))}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            with contextlib.suppress(OSError):  # it is elsewhere now, or another process has come
                if is_new and os.listdir(workdir) == [LOCK_FILE]:
                    path.unlink()
                    workdir.rmdir()


@contextlib.contextmanager
def _locked(path: pathlib.Path, workdir: pathlib.Path) -> Iterator[TextIO]:
    """The open lock file, locked."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            _lock(file, workdir)
            if _is_open(path, file):
                yield file
                return
        # The process that had the lock has removed the file and its folder.
        make_folder(workdir)


def _is_open(path: pathlib.Path, file: TextIO) -> bool:
    """Whether `file` is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: TextIO, workdir: pathlib.Path) -> None:
    started, logged = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder, _, identity = file.read().strip().partition("\n")
            holder = holder or "another process"
        except OSError as error:  # some network file systems have no locks
            console.log_info(
                f"{file.name}: {error.strerror}; make sure that only one process trains here"
            )
            return
        patience = 0.0 if distributed.count() == 1 and _is_here(holder, identity) else _PATIENCE
        if time.monotonic() - started >= patience:
            raise UserError(
                f"--workdir={workdir}: {holder} is training here; expected one process at a time, "
                "or another --workdir"
            )
        if not logged:
            console.log_info(
                f"--workdir={workdir}: waiting up to {patience:g} s for {holder} to release it"
            )
            logged = True
        time.sleep(_RETRY_SECONDS)


def _is_here(holder: str, identity: str) -> bool:
    """Whether a lock's holder is surely alive, on this machine.

    A pod that is started again has the host name of the one that is gone.
    """
    try:
        known = json.loads(identity)
    except ValueError:
        known = None
    if known is None:  # another system than Linux
        return holder.endswith(f" on {socket.gethostname()}")
    return processes.is_alive(known) is True


def open_config(config: Config, workdir: pathlib.Path) -> Config | None:
    """The config to resume the run in `workdir` with, or None if the workdir has no run.

    Args:
      config: Config that the user asked for.
      workdir: Folder of the run.

    Raises:
      UserError: The run has another config, or `bloodjax adapt` made it; the folder is that of a
        sweep, or has checkpoints without a config; or the config is none for a new run.
    """
    if (workdir / ADAPTATION_FILE).exists():
        raise UserError(
            f"--workdir={workdir}: contains a run that bloodjax adapt made, which training would "
            "replace; expected another --workdir"
        )
    if (workdir / SWEEP_FILE).exists():
        raise UserError(f"--workdir={workdir}: contains a sweep, expected another --workdir")
    path = workdir / CONFIG_FILE
    if not path.exists():
        # Continued with new splits, the run would be tested on images that it was trained on.
        for folder in (workdir, *workdir.glob("fold[0-9]*")):
            if any((folder / CHECKPOINTS).glob("[0-9]*")):
                raise UserError(
                    f"--workdir={workdir}: has checkpoints in {folder / CHECKPOINTS} but no "
                    f"{CONFIG_FILE}, expected a whole run or another --workdir"
                )
        check_new_run(config)
        return None
    stored = config_lib.load_json(path)
    changes = config_lib.differences(stored, config)
    if changes:
        raise UserError(
            f"--workdir={workdir}: contains a run with another config ({'; '.join(changes[:3])}); "
            "expected the same config, or another --workdir"
        )
    return config_lib.resumed(stored, config)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run that is open for reading.

    Attributes:
      workdir: Folder of the run.
      config: Config of the run.
      checkpoints: Its checkpoints, of which there is at least one.
      progress: Progress of the latest checkpoint.
    """

    workdir: pathlib.Path
    config: Config
    checkpoints: Checkpoints
    progress: RunProgress

    @property
    def best_step(self) -> int:
        """Step of the best checkpoint; of the latest one if no epoch was validated."""
        best = self.progress.best_step
        return self.checkpoints.latest_step if best is None else best

    def best_variables(self, like: PyTree, *, ema: bool) -> PyTree:
        """The network's variables at `best_step`.

        Args:
          like: Variables of the same shapes and dtypes.
          ema: Whether to read their moving average, which the run must have kept.
        """
        return self.checkpoints.restore_variables(self.best_step, like, ema=ema)


@contextlib.contextmanager
def open_run(workdir: pathlib.Path) -> Iterator[SavedRun]:
    """Opens the run in `workdir` for reading: its config, and its checkpoints, verified once.

    Args:
      workdir: Folder of the run.

    Raises:
      UserError: The folder contains no run, or the run has no valid checkpoint.
    """
    config_file = workdir / CONFIG_FILE
    if not config_file.is_file():
        raise UserError(f"{workdir}: no run is here, expected a folder with {CONFIG_FILE}")
    config = config_lib.load_json(config_file)
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"{workdir}: the run has no valid checkpoint yet")
        yield SavedRun(workdir, config, checkpoints, checkpoints.progress())


def write_variables(
    folder: pathlib.Path,
    progress: RunProgress,
    variables: PyTree,
    executor: JitExecutor | PmapExecutor,
    *,
    ema: bool = False,
) -> None:
    """Writes a network's variables as a checkpoint without optimizer, at `progress.best_step`.

    Args:
      folder: Folder of the checkpoints.
      progress: Progress that the checkpoint gets.
      variables: The network's variables.
      executor: Executor of the run, which shards them.
      ema: Whether to write them as their moving average too, which `config.ema` asks for.
    """
    state = TrainState(
        jnp.int32(progress.best_step),
        **variables,
        opt_state={},
        metrics=Metrics.zeros(),
        ema=Average.of(variables) if ema else None,
    )
    with Checkpoints(folder) as checkpoints:
        # Orbax would not write a step before another one, which may be that of lost weights.
        checkpoints.drop_after(None)
        checkpoints.save(executor.unreplicate(executor.shard_state(state)), progress)
