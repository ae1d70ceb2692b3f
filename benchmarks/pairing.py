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
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.tasks import Task

# A round runs each contender for about this long, and for one step at least.
_ROUND_SECONDS = 1.0
MIN_ROUNDS = 3


class Process:
    """A `benchmarks.worker` under way."""

    def __init__(self, contender: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender],
            env={**os.environ, **CONTENDERS[contender][2]},
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


def _ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    timed = [name for name in found if "median" in found[name]]
    ratios = {}
    for name in timed[1:]:
        pairs = zip(found[timed[0]]["step_seconds"], found[name]["step_seconds"], strict=True)
        each = sorted(ours / theirs for ours, theirs in pairs)
        ratios[name] = {"median": statistics.median(each), "low": each[0], "high": each[-1]}
    return ratios
