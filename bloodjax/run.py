"""One run, from top to bottom: lock the workdir, set up, train, evaluate, report."""

from __future__ import annotations

import pathlib

from bloodjax import distributed
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.config import Config
from bloodjax.distributed.preemption import graceful_shutdown
from bloodjax.evaluation import evaluator, teacher
from bloodjax.training import trainer
from bloodjax.training.setup import prepare_run
from bloodjax.training.workdir import CHECKPOINTS, lock_workdir, open_config


def train(config: Config, workdir: pathlib.Path) -> dict[str, dict]:
    """Trains a run, or resumes it from its latest checkpoint; then evaluates it and reports.

    Args:
      config: Config of the run. A run in `workdir` must have the same one.
      workdir: Folder of the run; it is created if missing.

    Returns:
      The content of `metrics.json` for each split that was evaluated.

    Raises:
      UserError: The user can correct the cause, such as a missing file or a diverging loss.
      Stopped: SIGINT or SIGTERM came. The run was saved, and the same command resumes it.
    """
    single = distributed.count() == 1
    with (
        lock_workdir(workdir),
        graceful_shutdown(config.grace_seconds, single_process=single) as stop,
    ):
        with stop.interruptible("stopped before the setup; the same command starts again"):
            stored = open_config(config, workdir)
        with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
            with stop.interruptible("stopped during the setup; the same command starts again"):
                fresh = checkpoints.latest_step is None
                context = prepare_run(config, stored, workdir, fresh, teacher.load)
                run = trainer.Trainer(context, workdir, checkpoints, stop)
            stop.on_immediate_exit(run.describe_unsaved)
            with distributed.propagate_errors():
                run.train(context.backbone)
        stop.on_immediate_exit(lambda: "everything is saved except the evaluation")
        with stop.interruptible("stopped during the evaluation; the same command repeats it"):
            return evaluator.finish(context.config, workdir, context.splits)
