"""Runs several processes of one training run on this machine's CPU.

    python launch/local.py --processes=2 --devices=2 -- \
        --config=quickstart --workdir=runs/two --config.batch_size=64

Each process is a `python -m bloodjax.main` with the flags after `--`, a process id and the address
of process 0. Use it to try a run of several processes before you submit it to a cluster; the tests
use it too. A single process that uses all devices of a machine is faster.

Each line of output starts with the process id. SIGINT and SIGTERM are forwarded: the run saves a
checkpoint and exits with 128 + signal. If a process fails, the others exit too, and the run is
restarted up to `--restarts` times. There is no restart after status 2, a user error, which a
restart would repeat. `--dry-run` prints the commands and does not run them.

The number of processes and devices does not affect the results. A run may resume with another one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

# A command, and environment variables in addition to this process's.
Command = tuple[Sequence[str], Mapping[str, str]]

_USER_ERROR = 2
# Seconds in which the other processes must exit once one has failed.
_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.1


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit status."""
    args, flags = _parse(argv)
    if args.dry_run:
        for command, environ in commands(args.processes, args.devices, free_port(), flags):
            settings = [f"{name}={shlex.quote(value)}" for name, value in environ.items()]
            print(" ".join([*settings, shlex.join(command)]))
        return 0
    for left in range(args.restarts, -1, -1):
        run = Run(commands(args.processes, args.devices, free_port(), flags))
        status = run.wait()
        if status in (0, _USER_ERROR) or run.signal or not left:
            return status
        _say(f"exited with status {status}; restarting ({left - 1} restarts left after that)")
    return status


def commands(
    processes: int, devices: int, port: int, flags: Sequence[str], environ: Mapping = os.environ
) -> list[Command]:
    """Returns the command of each process.

    Args:
      processes: Number of processes.
      devices: Number of devices per process.
      port: Port of process 0, to which the others connect.
      flags: Flags of every process.
      environ: The current environment.
    """
    xla = f"{environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    own = {
        "JAX_PLATFORMS": environ.get("JAX_PLATFORMS", "cpu"),
        "XLA_FLAGS": xla.strip(),
        "PYTHONUNBUFFERED": "1",
    }
    module = [sys.executable, "-m", "bloodjax.main"]
    place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    return [
        ([*module, *flags, *place, f"--process_id={process}"], own) for process in range(processes)
    ]


class Run:
    """The processes of one run, which start and end together.

    Attributes:
      signal: The last signal that was forwarded to them, or 0.
      processes: The `subprocess.Popen` of each process.
    """

    def __init__(self, commands: Sequence[Command], grace: float = _GRACE_SECONDS):
        self.signal, self._grace = 0, grace
        self._first: int | None = None
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **environ},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Then Ctrl-C in a terminal reaches them only through this process. If they received
                # it twice, they would exit immediately.
                start_new_session=True,
            )
            for command, environ in commands
        ]
        self._printers = [
            threading.Thread(target=_print_lines, args=(number, process.stdout), daemon=True)
            for number, process in enumerate(self.processes)
        ]
        for printer in self._printers:
            printer.start()

    def wait(self) -> int:
        """Waits for all processes, forwarding signals; returns the exit status of the run."""
        before = {n: signal.signal(n, self._forward) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        for printer in self._printers:
            printer.join(1.0)
        return self._status()

    def _wait(self) -> None:
        """Returns when all have ended, or when the others' time is over after one has failed."""
        end = float("inf")
        while None in (codes := [process.poll() for process in self.processes]):
            failed = [code for code in codes if code]
            if failed and self._first is None:
                self._first, end = failed[0], time.monotonic() + self._grace
            if time.monotonic() > end:
                late = [number for number, code in enumerate(codes) if code is None]
                _say(f"process {', '.join(map(str, late))} did not exit and was killed")
                return
            time.sleep(_POLL_SECONDS)

    def _status(self) -> int:
        found = [process.returncode for process in self.processes]
        if _USER_ERROR in found:
            return _USER_ERROR
        failed = [code for code in (self._first, *found) if code]
        if not failed:
            return 0
        return failed[0] if failed[0] > 0 else 128 - failed[0]

    def _forward(self, number: int, _) -> None:
        self.signal = number
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _print_lines(number: int, lines) -> None:
    for line in lines:
        text = line.decode(errors="replace").rstrip("\n")
        # With its end in one piece: between two, a line of another process may come.
        print(f"[{number}] {text}\n", end="", flush=True)


def _say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def free_port() -> int:
    """Returns a free TCP port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    lines = __doc__.strip().splitlines()
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processes", type=_count, default=2, help="number of processes (default: 2)"
    )
    parser.add_argument(
        "--devices", type=_count, default=1, help="devices per process (default: 1)"
    )
    parser.add_argument(
        "--restarts", type=_restarts, default=20, help="maximum number of restarts (default: 20)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands, do not run them"
    )
    own, flags = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    args = parser.parse_args(own)
    if not flags:
        parser.error("expected the flags of bloodjax.main after --: --config=... --workdir=...")
    return args, flags


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least 1")
    return int(text)


def _restarts(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
