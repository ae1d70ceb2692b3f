"""Several workers of a sweep as processes of this machine.

Worker 0 is the command itself. The others run the same command with `--workers=1`, and log to
WORKDIR/worker1.log and so on. With CUDA_VISIBLE_DEVICES=0,1,... each worker gets its share of
these GPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bloodjax.cli import console
from bloodjax.distributed import preemption
from bloodjax.errors import UserError
from bloodjax.io.files import make_folder

_DEVICES = "CUDA_VISIBLE_DEVICES"
# Follow the arguments of the other workers, since the last of equal flags counts: only one process
# starts workers, and only one evaluates.
_LAST_FLAGS = ("--workers=1", "--notest")


@contextlib.contextmanager
def started(workers: int, workdir: pathlib.Path, argv: Sequence[str]) -> Iterator[None]:
    """Starts the other workers, and waits for them after the body.

    If the body fails, as by a signal, or this process ends at once, they get SIGTERM: each saves
    its trial and ends.

    Args:
      workers: Number of workers, with this process.
      workdir: Folder of the sweep.
      argv: Arguments of the command.

    Raises:
      UserError: The environment names fewer GPUs than there are workers; or another worker ended
        with an error, after its message was logged.
    """
    if workers == 1:
        yield
        return
    shares = devices(workers, os.environ)
    make_folder(workdir)
    processes: dict[pathlib.Path, subprocess.Popen] = {}
    try:
        for worker in range(1, workers):
            log = workdir / f"worker{worker}.log"
            with log.open("ab") as file:
                processes[log] = subprocess.Popen(
                    [sys.executable, "-m", "bloodjax.sweep", *argv, *_LAST_FLAGS],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=os.environ | shares[worker],
                    # Ctrl-C reaches them once: from this process.
                    start_new_session=True,
                )
            console.log_info(f"worker {worker} of {workers}: {log}")
        os.environ.update(shares[0])
        with preemption.before_exit(lambda: _terminate(processes.values())):
            yield
            failed = [log for log, process in processes.items() if process.wait() != 0]
    except BaseException:
        _terminate(processes.values())
        for process in processes.values():
            process.wait()
        raise
    if failed:
        raise UserError(
            f"{console.counted(len(failed), 'worker')} ended with an error; expected the reason in "
            f"{', '.join(map(str, failed))}"
        )


def _terminate(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def devices(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The variable that gives each worker its GPUs; empty where the environment does not set it.

    Raises:
      UserError: It names fewer GPUs than there are workers.
    """
    listed = [each for each in environment.get(_DEVICES, "").split(",") if each.strip()]
    # CUDA ignores what follows a negative number: -1 alone hides all GPUs.
    known = list(itertools.takewhile(lambda each: not each.strip().startswith("-"), listed))
    if not known:
        return [{}] * workers
    if len(known) < workers:
        raise UserError(
            f"--workers={workers}: {_DEVICES}={environment[_DEVICES]} has "
            f"{console.counted(len(known), 'GPU')}, expected one for each worker"
        )
    return [{_DEVICES: ",".join(known[i::workers])} for i in range(workers)]
