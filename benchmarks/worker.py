"""Runs one contender in a process: reads requests, one JSON object per line, and answers each.

`{"task": {...}}` sets up and takes the first step, including compilation. The answer has `seconds`
and the versions (`about`), or only `error`. `{"steps": n}` takes n steps. The answer has `seconds`
and `peak_bytes` (host memory). `{"calls": n}` takes n steps, each of which is waited for; the
answer has the seconds of `each`. The process exits at the end of its input.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.tasks import Task


class Worker:
    """Answers requests for one contender."""

    def __init__(self, contender: str):
        self._module, self._variant, _ = CONTENDERS[contender]
        self._running = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; see the module's docstring."""
        started = time.perf_counter()
        if "calls" in request:
            return {"each": [self._timed() for _ in range(request["calls"])]}
        if "task" not in request:
            self._running.run(request["steps"])
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return {"seconds": seconds, "peak_bytes": peak}
        try:
            module = importlib.import_module(f"benchmarks.contenders.{self._module}")
            self._running = module.Contender(Task(**request["task"]), self._variant)
            self._running.run(1)
        except Exception as error:  # Any error of a library: it is left out, with a message.
            return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        return {"seconds": time.perf_counter() - started, "about": module.about()}

    def _timed(self) -> float:
        started = time.perf_counter()
        self._running.run(1)
        return time.perf_counter() - started


def main() -> None:
    """Answers requests until the end of the input."""
    worker, answers = Worker(sys.argv[1]), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # Libraries may print.
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
