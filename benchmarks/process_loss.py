"""Measures how two processes end when one of them is lost, under JAX alone and under bloodjax.

python -m benchmarks.process_loss [--timeout=10] [--limit=60] [--only=killed,stopped] [--out=DIR]

Two processes exchange a value in a loop. At the twentieth round one of them, process 1 or process
0, is harmed. "jax" uses `jax.distributed.initialize(heartbeat_timeout_seconds=TIMEOUT)` and
`multihost_utils.process_allgather`; "bloodjax" uses `distributed.session(timeout=TIMEOUT)`,
`with_timeout` and `exchange`. For each process the table has its exit status and the seconds from
the harm to its end, "runs on" if it had not ended after LIMIT seconds, and whether the other
process's output names the harmed one: by its id, its host, both or neither.

`--out` (benchmarks/results) gets DEVICE/process_loss_DATE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import record
from launch.local import free_port

# What the harmed process does, and where: as it waits for its data, or at work on them. {long} is
# three times the timeout.
HARMS = {
    "killed": ("work", "os.kill(os.getpid(), signal.SIGKILL)"),
    "stopped": ("work", "os.kill(os.getpid(), signal.SIGSTOP)"),
    "waits for its data for ever": ("data", "time.sleep(10000)"),
    "holds the GIL for ever": ("work", "ctypes.PyDLL(None).sleep(10000)"),
    "raises an exception": ("work", "raise RuntimeError('disk on fire')"),
    "meets a user error": ("work", "raise UserError('no such file')"),
    "works for three timeouts": ("work", "time.sleep({long})"),
}
SYSTEMS = ("jax", "bloodjax")

_COMMON = """
import ctypes, os, signal, sys, time
from bloodjax.errors import UserError
process, port, timeout, victim = map(int, sys.argv[1:5])

def harm(number, place):
    if number == 20 and process == victim and place == "{place}":
        print("harmed", time.time(), flush=True)
        {harm}

def rounds():
    for number in range(23):
        harm(number, "data")
        yield number
"""
_PROGRAMS = {
    "jax": """
import jax, numpy as np
from jax.experimental import multihost_utils
jax.distributed.initialize(
    f"127.0.0.1:{port}", 2, process, cluster_detection_method="deactivate",
    heartbeat_timeout_seconds=timeout, shutdown_timeout_seconds=timeout,
)
try:
    for number in rounds():
        harm(number, "work")
        multihost_utils.process_allgather(np.array([number]))
except UserError:
    sys.exit(2)
jax.distributed.shutdown()
""",
    "bloodjax": """
from bloodjax import distributed
with distributed.session(f"127.0.0.1:{port}", 2, process, timeout):
    with distributed.propagate_errors():
        for number in distributed.with_timeout(rounds()):
            harm(number, "work")
            distributed.exchange(number)
""",
}


@dataclasses.dataclass
class End:
    """How a process ended.

    Attributes:
      status: Exit status; minus the signal's number if a signal ended it; None if it ran on.
      seconds: From the harm to the end.
      names: What the output of this process says of the harmed one: "id", "host".
    """

    status: int | None
    seconds: float
    names: list[str]

    def __str__(self) -> str:
        if self.status is None:
            return "runs on"
        return f"{self.status} after {self.seconds:.1f} s"


def measure(system: str, harm: str, victim: int, timeout: int, limit: float) -> list[End]:
    """Runs two processes, and harms one.

    Args:
      system: One of `SYSTEMS`.
      harm: A key of `HARMS`.
      victim: Id of the process to harm.
      timeout: Seconds of silence after which a process counts as lost.
      limit: Seconds after the harm at which a process counts as running on, and is killed.

    Returns:
      How each process ended, in order of process id.
    """
    place, line = HARMS[harm]
    common = _COMMON.replace("{place}", place).replace("{harm}", line.format(long=3 * timeout))
    code = common + _PROGRAMS[system]
    arguments = [str(free_port()), str(timeout), str(victim)]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [pathlib.Path(folder) / f"{process}.txt" for process in range(2)]
        processes = []
        for process, output in enumerate(outputs):
            with output.open("w") as file:
                command = [sys.executable, "-c", code, str(process), *arguments]
                processes.append(
                    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ)
                )
        ended: dict[int, tuple[int, float]] = {}
        started, harmed = time.time(), None
        while len(ended) < 2 and time.time() < (harmed or started + 120) + limit:
            time.sleep(0.05)
            found = re.search(r"harmed ([\d.]+)", outputs[victim].read_text())
            harmed = float(found[1]) if found else harmed
            for number, process in enumerate(processes):
                if number not in ended and process.poll() is not None:
                    ended[number] = (process.returncode, time.time())
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        texts = [output.read_text() for output in outputs]
    if harmed is None:
        raise RuntimeError(f"no process was harmed: {texts}")
    return [
        End(status, round(end - harmed, 1), _names(text, victim))
        for (status, end), text in zip(
            (ended.get(number, (None, time.time())) for number in range(2)), texts, strict=True
        )
    ]


def _names(text: str, victim: int) -> list[str]:
    found = []
    text = text.replace("(usually slice 0 task 0)", "")  # JAX's advice for every error
    # JAX lists the ids of tasks that have failed, each on a line, or says "Task 1".
    if re.search(rf"(?im)\b(process|task) {victim}\b|^{victim}$", text):
        found.append("id")
    if f"({socket.gethostname()})" in text:
        found.append("host")
    return found


def table(results: dict[str, dict[str, list[dict]]]) -> str:
    """The results as a Markdown table, a row for each harm and victim."""
    rows = [
        "| process | " + " | ".join(f"{s}: it | {s}: the other | named" for s in SYSTEMS) + " |"
    ]
    rows.append("|---" * (1 + 3 * len(SYSTEMS)) + "|")
    for case, found in results.items():
        victim = int(case[0])
        cells = [f"{victim} {case[2:]}"]
        for system in SYSTEMS:
            ends = [End(**end) for end in found[system]]
            other = ends[1 - victim]
            cells += [str(ends[victim]), str(other), " and ".join(other.names) or "no"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process_loss", description=__doc__)
    parser.add_argument("--timeout", type=int, default=10)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(HARMS), help="what becomes of the process")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen = parser.parse_args(argv)
    results = {}
    for harm in chosen.only.split(","):
        for victim in (1, 0):
            results[f"{victim} {harm}"] = {
                system: [
                    dataclasses.asdict(end)
                    for end in measure(system, harm, victim, chosen.timeout, chosen.limit)
                ]
                for system in SYSTEMS
            }
            print(f"{victim} {harm}: {results[f'{victim} {harm}']}", flush=True)
    content = {"timeout": chosen.timeout, "limit": chosen.limit, "results": results}
    path = record.write(chosen.out, record.device_name("cpu", ""), content, "process_loss_")
    print(table(results), json.dumps(str(path)), sep="\n")


if __name__ == "__main__":
    main()
