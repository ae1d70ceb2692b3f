"""Timing side by side: in each round every contender runs once, and so shares the machine's moods.

What counts is the ratio within a round. Single times of a noisy machine say little.
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

# A round runs each contender for about this long, and for one step at least.
_ROUND_SECONDS = 2.0
MIN_ROUNDS = 3


class Process:
    """A `benchmarks.worker` under way."""

    def __init__(self, contender: str, cache: str = ""):
        # Where JAX and PyTorch keep what they compile.
        kept = {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender],
            env={**os.environ, **CONTENDERS[contender][2], **(kept if cache else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
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
      task: the work.
      contenders: keys of `CONTENDERS`; ratios are of the first one's time and another's.
      seconds: how long rounds may go on; there are `MIN_ROUNDS` of them in any case.
      start: makes what `Process` is.

    Returns:
      `task`, `contenders` (name -> its `about`, `start_seconds` from nothing to the first step,
      `step_seconds` of each round, their `median`, `peak_bytes`; or `error`), and `ratios` (name ->
      `median`, `low` and `high` over the rounds).
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
                # While it waits for its turn, a virtual machine takes memory back that a run's next
                # step would find in place.
                running[name].ask(steps=1)
                answer = running[name].ask(steps=steps[name])
                found[name]["step_seconds"].append(answer["seconds"] / steps[name])
                found[name]["peak_bytes"] = answer["peak_bytes"]
            rounds += 1
            order = order[1:] + order[:1]  # each goes first in turn
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
    """Times every contender from nothing to the end of its first step, twice in a row each round.

    Arguments and result are those of `compare`, but for `cold_seconds`, of the first of the two,
    where nothing was compiled before; the second, where it was, is in `step_seconds`.
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
