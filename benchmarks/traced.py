"""Runs `bloodjax.main` and traces its events: python -m benchmarks.traced TRACE --config=... ...

Each event is one line in TRACE, written immediately:

from N    the run resumes from step N
step N    step N is dispatched to the device
save N    the checkpoint of step N is being written in the background; the one before is complete
predict   a pass over a split starts
finish    the final evaluation starts
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

from bloodjax import main
from bloodjax.cli import command


def trace(path: str) -> None:
    """Makes the run of this process write its events to the file `path`."""
    from bloodjax.checkpoints.manager import Checkpoints
    from bloodjax.evaluation import evaluator
    from bloodjax.training.executor import JitExecutor

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    steps = itertools.count(1)

    def note(event: str) -> None:
        os.write(file, f"{event}\n".encode())

    def before(where: Any, name: str, event) -> None:
        original = getattr(where, name)

        def traced(*args, **kwargs):
            note(event(*args, **kwargs))
            return original(*args, **kwargs)

        setattr(where, name, traced)

    def restored(_, step: int, *args, **kwargs) -> str:
        nonlocal steps
        steps = itertools.count(step + 1)
        return f"from {step}"

    before(JitExecutor, "train", lambda *_: f"step {next(steps)}")
    before(JitExecutor, "predict", lambda *_: "predict")
    before(Checkpoints, "restore", restored)
    before(evaluator, "finish", lambda *_: "finish")
    save = Checkpoints.save

    def saved(self, state, progress):
        save(self, state, progress)
        note(f"save {int(state.step)}")

    Checkpoints.save = saved


if __name__ == "__main__":
    trace(sys.argv.pop(1))
    command.run(main.main, required=("config", "workdir"), takes_config=True)
