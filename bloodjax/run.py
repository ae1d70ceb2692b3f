"""One run, from top to bottom: lock the workdir, set up, train, evaluate, report."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bloodjax import config as config_lib
from bloodjax import distributed, tracking
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.config import Config
from bloodjax.distributed.preemption import ShutdownRequest, graceful_shutdown
from bloodjax.evaluation import evaluator, teacher, tracked_results
from bloodjax.tracking import TrackerGroup
from bloodjax.training import trainer
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.setup import RunContext, prepare_run
from bloodjax.training.workdir import CHECKPOINTS, check_apart, lock_workdir, open_config


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
    with _fit(config, workdir) as (context, stop, trackers):
        stop.on_immediate_exit(lambda: "everything is saved except the evaluation")
        with stop.interruptible("stopped during the evaluation; the same command repeats it"):
            results = evaluator.finish(context.config, workdir, context.splits)
            tracked_results.log(context.config, workdir, results, trackers)
            return results


def fit(
    config: Config,
    workdir: pathlib.Path,
    splits: Splits | None = None,
    ends_after: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> None:
    """Trains a run as `train` does, and evaluates nothing: no test image is predicted.

    Args:
      config: Config of the run. A run in `workdir` must have the same one.
      workdir: Folder of the run; it is created if missing.
      splits: The images in the run's `splits.json`, if the caller has read them.
      ends_after: Called with the log entry of each epoch that was validated and saved; returns
        whether training ends there.

    Raises:
      UserError: As for `train`.
      Stopped: SIGINT or SIGTERM came. The run was saved, and the same call resumes it.
    """
    with _fit(config, workdir, splits, ends_after):
        pass


@contextlib.contextmanager
def _fit(
    config: Config,
    workdir: pathlib.Path,
    splits: Splits | None = None,
    ends_after: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> Iterator[tuple[RunContext, ShutdownRequest, TrackerGroup]]:
    """Trains the run; in the body, its workdir is still locked and signals are still recorded."""
    tracking.check_installed(config.trackers)
    check_apart(config, workdir)
    single = distributed.count() == 1
    with (
        lock_workdir(workdir),
        graceful_shutdown(config.grace_seconds, single_process=single) as stop,
    ):
        with stop.interruptible("stopped before the setup; the same command starts again"):
            stored = open_config(config, workdir)
        with contextlib.ExitStack() as stack:
            with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
                with stop.interruptible("stopped during the setup; the same command starts again"):
                    fresh = checkpoints.latest_step is None
                    context = prepare_run(config, stored, workdir, fresh, teacher.load, splits)
                    trackers = stack.enter_context(_open_trackers(context.config, workdir, stop))
                    run = trainer.Trainer(context, workdir, checkpoints, stop, ends_after, trackers)
                stop.on_immediate_exit(run.describe_unsaved)
                with distributed.propagate_errors():
                    run.train(context.backbone)
            yield context, stop, trackers
        distributed.barrier()  # the primary process has waited for its trackers


def _open_trackers(
    config: Config, workdir: pathlib.Path, stop: ShutdownRequest
) -> contextlib.AbstractContextManager[TrackerGroup]:
    options = config.tracking
    return tracking.open_trackers(
        config.trackers,
        workdir,
        project=options.project,
        run_name=options.run_name,
        tags=options.tags,
        parameters=config_lib.flatten(config),
        finish_seconds=options.finish_seconds,
        stopping=lambda: stop.signal,
    )
