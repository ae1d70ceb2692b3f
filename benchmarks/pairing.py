"""Times contenders in rounds: each runs once per round, so all see the same load of the machine.

Compare ratios within a round. Absolute times of a shared machine vary too much.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.tasks import Task

# Approximate duration of a contender in a round; it runs at least one step.
_ROUND_SECONDS = 2.0
MIN_ROUNDS = 3


class Process:
    """A running `benchmarks.worker` process."""

    def __init__(self, contender: str, cache: str = ""):
        # Compilation caches of JAX and PyTorch.
        caches = {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender],
            env={**os.environ, **CONTENDERS[contender][2], **(caches if cache else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def compare(
    task: Task,
    contenders: Sequence[str],
    seconds: float,
    start: Callable[[str], Any] = Process,
) -> dict[str, Any]:
    """Times every contender on one task.

    Args:
      task: The task.
      contenders: Keys of `CONTENDERS`. Ratios are the first one's time divided by another's.
      seconds: Duration of all rounds together; there are at least `MIN_ROUNDS` of them.
      start: Starts a process of a contender.

    Returns:
      `task`; `contenders`: name -> `about`, `start_seconds` (process start to the first step),
      `step_seconds` by round, their `median` and `peak_bytes`, or `error`; and `ratios`: name ->
      `median`, `low` and `high` over the rounds.
    """
    found: dict[str, Any] = {}
    running, steps = {}, {}
    try:
        for name in contenders:
            began = time.perf_counter()
            process = start(name)
            answer = process.ask(task=dataclasses.asdict(task))
            if "error" in answer:
                found[name] = answer
                process.close()
                continue
            taken = time.perf_counter() - began
            found[name] = {"about": answer["about"], "start_seconds": taken, "step_seconds": []}
            running[name] = process
            warm = process.ask(steps=1)["seconds"]
            steps[name] = max(1, round(_ROUND_SECONDS / max(warm, 1e-6)))
        began, rounds = time.perf_counter(), 0
        order = list(running)
        while order and (rounds < MIN_ROUNDS or time.perf_counter() - began < seconds):
            for name in order:
                # A virtual machine takes memory back from a process that waits for its turn. This
                # step gets the memory again, and is not timed.
                running[name].ask(steps=1)
                answer = running[name].ask(steps=steps[name])
                found[name]["step_seconds"].append(answer["seconds"] / steps[name])
                found[name]["peak_bytes"] = answer["peak_bytes"]
            rounds += 1
            order = order[1:] + order[:1]  # Another contender goes first.
    finally:
        for process in running.values():
            process.close()
    for name in running:
        found[name]["median"] = statistics.median(found[name]["step_seconds"])
    return {"task": dataclasses.asdict(task), "contenders": found, "ratios": _ratios(found)}


def compare_starts(
    task: Task,
    contenders: Sequence[str],
    seconds: float,
    start: Callable[..., Any] = Process,
) -> dict[str, Any]:
    """Times every contender from process start to the end of the first step, twice per round.

    Arguments and result are those of `compare`. The first of the two starts, with an empty
    compilation cache, is in `cold_seconds`; the second, with a warm one, in `step_seconds`.
    """
    found: dict[str, Any] = {}
    trained = dataclasses.asdict(dataclasses.replace(task, kind="train"))
    began, rounds = time.perf_counter(), 0
    running = list(contenders)
    while running and (rounds < 1 or time.perf_counter() - began < seconds):
        for name in list(running):
            with tempfile.TemporaryDirectory() as cache:
                times = []
                for _ in range(2):
                    before = time.perf_counter()
                    process = start(name, cache)
                    answer = process.ask(task=trained)
                    times.append(time.perf_counter() - before)
                    process.close()
            if "error" in answer:
                found[name] = answer
                running.remove(name)
                continue
            empty = {"about": answer["about"], "cold_seconds": [], "step_seconds": []}
            entry = found.setdefault(name, empty)
            entry["cold_seconds"].append(times[0])
            entry["step_seconds"].append(times[1])
        rounds += 1
    for name in running:
        found[name]["median"] = statistics.median(found[name]["step_seconds"])
    return {"task": dataclasses.asdict(task), "contenders": found, "ratios": _ratios(found)}


def _ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    timed = [name for name in found if "median" in found[name]]
    ratios = {}
    for name in timed[1:]:
        pairs = zip(found[timed[0]]["step_seconds"], found[name]["step_seconds"], strict=True)
        each = sorted(ours / theirs for ours, theirs in pairs)
        ratios[name] = {"median": statistics.median(each), "low": each[0], "high": each[-1]}
    return ratios
