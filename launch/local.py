"""Runs several processes of one training run on this machine's CPU.

    python launch/local.py --processes=2 --devices=2 -- \
        --config=configs/quickstart.py --workdir=runs/two --config.batch_size=64

What stands after `--` goes to each `python -m bloodjax.main`, which gets a process number and the
address of the first besides. It is how to try a run of several processes before a cluster has it,
and how the tests do; one process that drives all of a machine's devices is faster.

Each line of output has the process's number in front. SIGINT and SIGTERM are passed on: the run
saves and ends with 128 + the signal. When a process ends in an error, so do the others; the run is
then started again, up to `--restarts` times, except after status 2, a mistake that a restart would
repeat. `--dry-run` prints the commands and runs nothing.

The number of processes and devices does not change what is trained: a run may go on with others.
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

# A command, and what it finds in its environment besides ours.
Command = tuple[Sequence[str], Mapping[str, str]]

_MISTAKE = 2
# Seconds that the others have to end by themselves, once one has ended in an error.
_GRACE = 20.0
_PAUSE = 0.1


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
        if status in (0, _MISTAKE) or run.signal or not left:
            return status
        _say(f"ended with status {status}; starting again, {left - 1} more times after this")
    return status


def commands(
    processes: int, devices: int, port: int, flags: Sequence[str], environ: Mapping = os.environ
) -> list[Command]:
    """What to run for each process.

    Args:
      processes: how many.
      devices: that each is to have.
      port: of the first, where the others find it.
      flags: of each.
      environ: the present environment.
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
    """Processes that live and end together.

    Attributes:
      signal: the last one that was passed on to them, or 0.
      processes: each one's `subprocess.Popen`.
    """

    def __init__(self, commands: Sequence[Command], grace: float = _GRACE):
        self.signal, self._grace = 0, grace
        self._first: int | None = None
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **environ},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C reaches them once then, through us; twice means "at once".
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
        """Passes signals on until all have ended; returns the status of the run."""
        before = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
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
        """Returns when all have ended, or the time is over in which they should have."""
        end = float("inf")
        while None in (codes := [process.poll() for process in self.processes]):
            failed = [code for code in codes if code]
            if failed and self._first is None:
                self._first, end = failed[0], time.monotonic() + self._grace
            if time.monotonic() > end:
                late = [number for number, code in enumerate(codes) if code is None]
                _say(f"process {', '.join(map(str, late))} did not end: killed")
                return
            time.sleep(_PAUSE)

    def _status(self) -> int:
        found = [process.returncode for process in self.processes]
        if _MISTAKE in found:
            return _MISTAKE
        failed = [code for code in (self._first, *found) if code]
        if not failed:
            return 0
        return failed[0] if failed[0] > 0 else 128 - failed[0]

    def _pass_on(self, number: int, _) -> None:
        self.signal = number
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _print_lines(number: int, lines) -> None:
    for line in lines:
        text = line.decode(errors="replace").rstrip("\n")
        print(f"[{number}] {text}", flush=True)


def _say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
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
    parser.add_argument("--processes", type=_count, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=_count, default=1, help="that each has (default: 1)")
    parser.add_argument("--restarts", type=int, default=20, help="at most (default: 20)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    own, flags = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    args = parser.parse_args(own)
    if not flags:
        parser.error("after -- expected the flags of bloodjax.main: --config=... --workdir=...")
    return args, flags


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
