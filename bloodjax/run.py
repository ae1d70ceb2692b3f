"""One run, from top to bottom: lock the workdir, set up, resume, train, evaluate, report."""

from __future__ import annotations

import pathlib

from bloodjax import distributed
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.config import Config
from bloodjax.distributed.preemption import graceful_shutdown
from bloodjax.evaluation import evaluator
from bloodjax.training import trainer
from bloodjax.training.setup import set_up
from bloodjax.training.workdir import CHECKPOINTS, lock_workdir, open_config


def train(config: Config, workdir: pathlib.Path) -> dict[str, dict]:
    """Trains, or goes on where the workdir's last checkpoint stands; then evaluates and reports.

    Returns:
      The content of `metrics.json` for each part that was evaluated.

    Raises:
      UserError: anything that the user can put right, a loss that is never finite among it.
      Stopped: SIGINT or SIGTERM came, and a checkpoint was written.
    """
    with (
        lock_workdir(workdir),
        graceful_shutdown(config.grace_seconds, single_process=distributed.count() == 1) as stop,
    ):
        with stop.interruptible("stopped before the run was set up; the same command begins again"):
            stored = open_config(config, workdir)
        with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
            with stop.interruptible("stopped while it was set up; the same command begins again"):
                ready = set_up(config, stored, workdir, fresh=checkpoints.latest_step is None)
                run = trainer.Trainer(ready, workdir, checkpoints, stop)
                stop.on_immediate_exit(run.describe_unsaved)
            with distributed.propagate_errors():
                run.train(ready.backbone)
        stop.on_immediate_exit(lambda: "everything is saved except the evaluation")
        with stop.interruptible("stopped while it was evaluated; the same command does that again"):
            return evaluator.finish(run.config, workdir, run.parts)
