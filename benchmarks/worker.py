"""One contender in a process of its own: reads requests, one JSON object a line, and answers them.

`{"task": {...}}` sets up and takes the first step, which compiles; its answer has `seconds` and the
versions (`about`), or `error` alone. `{"steps": n}` takes n steps; its answer has `seconds` and
`peak_bytes`, of host memory. The process ends with its input.
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
        """What `worker` as a process writes for a request."""
        started = time.perf_counter()
        if "task" not in request:
            self._running.run(request["steps"])
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return {"seconds": seconds, "peak_bytes": peak}
        try:
            module = importlib.import_module(f"benchmarks.contenders.{self._module}")
            self._running = module.Contender(Task(**request["task"]), self._variant)
            self._running.run(1)
        except Exception as error:  # whatever a peer raises: it is left out, and said so
            return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        return {"seconds": time.perf_counter() - started, "about": module.about()}


def main() -> None:
    """Serves until the input ends."""
    worker, answers = Worker(sys.argv[1]), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
