"""The trackers of a run: each has a process of its own, which can neither stop nor slow the run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.errors import Stopped, UserError
from bloodjax.io.files import make_folder
from bloodjax.tracking.options import DOORS, TENSORBOARD, TrackingOptions

FOLDER = "tracking"
_log = logging.getLogger("bloodjax")
# Messages that wait for a process that does not read. Further ones are dropped.
_MOST_WAITING = 1000
# Seconds that a run which was stopped or failed waits for its trackers.
_SHORT_WAIT = 5.0
_POLL_SECONDS = 0.05
# Runs `worker` with the bloodjax of this process, wherever it was imported from.
_ROOT = str(pathlib.Path(__file__).parents[2])
_START = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module('bloodjax.tracking.worker', run_name='__main__')"
)
# Figures that differ when an epoch is repeated after a kill, whose others do not.
_TIMES = ("seconds", "train/images_per_second")


def check_installed(trackers: Sequence[str]) -> None:
    """Raises a UserError if the package of one of the trackers is not installed."""
    for name in trackers:
        if name != TENSORBOARD and importlib.util.find_spec(DOORS[name][0]) is None:
            raise UserError(
                f"config.trackers has {name!r}, but the package {DOORS[name][0]} is not installed, "
                f"expected pip install 'bloodjax[{name}]'"
            )


class TrackerGroup:
    """The trackers of one run; none in processes other than the primary one."""

    def __init__(self, processes: Sequence[TrackerProcess] = ()):
        self._processes = processes

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each of several curves, once: also if an epoch is repeated.

        Args:
          values: Figures by name.
          step: Step of the run.
        """
        compared = {name: value for name, value in values.items() if name not in _TIMES}
        message = {"metrics": dict(values), "step": step}
        self._send(message, json.dumps([compared, step], sort_keys=True).encode())

    def log_results(self, values: Mapping[str, float], step: int) -> None:
        """Sets final results of the run.

        Args:
          values: Figures by name.
          step: Step of the weights that were evaluated.
        """
        message = {"results": dict(values), "step": step}
        self._send(message, json.dumps(message, sort_keys=True).encode())

    def log_report(self, path: pathlib.Path) -> None:
        """Adds a page of HTML, if it exists."""
        if self._processes and path.exists():
            self._send({"report": str(path.absolute())}, path.read_bytes())

    def log_model(self, folder: pathlib.Path) -> None:
        """Adds a folder with the classifier. Its files must not change afterwards."""
        if self._processes:
            digest = hashlib.sha256()
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                with path.open("rb") as file:
                    digest.update(path.name.encode())
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            self._send({"model": str(folder.absolute())}, digest.digest())

    def _send(self, message: dict[str, Any], content: bytes) -> None:
        message["digest"] = hashlib.sha256(content).hexdigest()[:16]
        for process in self._processes:
            process.send(message)

    def close(self, status: str, seconds: float, stopping: Callable[[], int]) -> None:
        """Ends the records, and waits until the trackers have everything.

        Args:
          status: "finished", "stopped" or "failed".
          seconds: Longest time to wait.
          stopping: Returns the signal that the run was asked to stop by, or 0.
        """
        for process in self._processes:
            process.finish(status)
        started = time.monotonic()
        while any(process.is_running for process in self._processes):
            if time.monotonic() - started > (min(seconds, _SHORT_WAIT) if stopping() else seconds):
                break
            time.sleep(_POLL_SECONDS)
        for process in self._processes:
            process.end(time.monotonic() - started)


class TrackerProcess:
    """The process of one tracker (`tracking.worker`), and the queue of messages to it."""

    def __init__(self, name: str, options: TrackingOptions):
        """Starts the process, and threads that write to it and read its answers."""
        self._name, self._folder = name, pathlib.Path(options.folder)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._warned, self._unsent, self._process = False, None, None
        log_file = self._folder / f"{name}.log"
        try:
            log_file.unlink(missing_ok=True)  # of a workdir in a bucket it is a link to the cache
            with log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, _ROOT, name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C ends the run, and that ends this process
                )
        except OSError as error:
            self._warn(str(error))
            return
        self._threads = [
            threading.Thread(target=target, name=f"{name} tracker", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()
        self.send({"open": vars(options)})

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Queues a message; drops it if too many wait, which never delays the caller."""
        try:
            self._queue.put_nowait(dict(message))
        except queue.Full:
            self._warn("it takes no messages")

    def finish(self, status: str) -> None:
        """Queues the last message."""
        with contextlib.suppress(queue.Full):  # `end` ends the process then
            self._queue.put({"finish": status}, timeout=_POLL_SECONDS)

    def end(self, waited: float) -> None:
        """Ends the process if it has not ended itself.

        Args:
          waited: Seconds that the run has waited for it.
        """
        if self._process is None:
            return
        late = self.is_running
        if late:
            # Also what the library has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join(_POLL_SECONDS if late else 1.0)
        if late or self._unsent is None:
            why = f"has not taken everything in {waited:.0f} s" if late else "has ended early"
            _log.warning(
                "%s %s; %s has its messages, and the same command sends the rest",
                self._name,
                why,
                self._folder / f"{self._name}.log",
            )
        elif self._unsent:
            _log.warning(
                "%s lacks %s; the same command sends the rest",
                self._name,
                console.counted(self._unsent, "entry", "entries"),
            )

    def _write(self) -> None:
        while True:
            message = self._queue.get()
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                self._warn("its process has ended")
                return
            if "finish" in message:
                return

    def _read(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            if "problem" in answer:
                self._warn(answer["problem"])
            elif "working" in answer:
                console.log_info(f"{self._name}: works again; it has everything so far")
            else:
                self._unsent = answer["unsent"]

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s: %s; the run continues without it", self._name, problem)


@contextlib.contextmanager
def open_trackers(
    trackers: Sequence[str],
    workdir: pathlib.Path,
    *,
    project: str,
    run_name: str,
    tags: Sequence[str],
    parameters: Mapping[str, Any],
    finish_seconds: float,
    stopping: Callable[[], int] = lambda: 0,
) -> Iterator[TrackerGroup]:
    """Starts the trackers of a run, and ends them with it.

    Args:
      trackers: Names of the trackers; TensorBoard has no process.
      workdir: Folder of the run.
      project: W&B's project and MLflow's experiment; "" for that of the tracker's environment.
      run_name: Name of the run; "" for that of the workdir.
      tags: Tags, each a word or key=value.
      parameters: All config values, by dotted key.
      finish_seconds: Longest time that the run waits for the trackers at its end.
      stopping: Returns the signal that the run was asked to stop by, or 0.
    """
    names = [name for name in trackers if name != TENSORBOARD]
    if not names or not distributed.is_primary():
        yield TrackerGroup()
        return
    folder = workdir.absolute() / FOLDER
    make_folder(folder)
    options = TrackingOptions(
        str(folder),
        project,
        run_name or workdir.resolve().name,
        tuple(tags),
        {key: _scalar(value) for key, value in parameters.items()},
    )
    group, status = TrackerGroup([TrackerProcess(name, options) for name in names]), "failed"
    try:
        yield group
        status = "finished"
    except Stopped:
        status = "stopped"
        raise
    finally:
        wait = finish_seconds if status == "finished" else min(finish_seconds, _SHORT_WAIT)
        group.close(status, wait, stopping)


def _scalar(value: Any) -> str | int | float | bool:
    """A config's value as trackers take it: a tuple as text, its items joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
