"""The one look of a sweep at the test split: the best trial, beside the config's own values."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.distributed.preemption import graceful_shutdown
from bloodjax.errors import UserError
from bloodjax.evaluation import evaluator
from bloodjax.io.files import atomic_write
from bloodjax.training.corrupted_splits import with_distorted
from bloodjax.training.input_pipeline import prepare_splits
from bloodjax.training.workdir import CONFIG_FILE, lock_workdir
from bloodjax.tuning import outcome
from bloodjax.tuning.outcome import PAGE, trial_folder
from bloodjax.tuning.study import RUNNING
from bloodjax.tuning.sweep import RESAMPLES, Sweep

# Metrics that the page shows.
_SHOWN = ("n", "accuracy", "balanced_accuracy", "f1_macro", "auc_ovr", "nll")


def evaluate(sweep: Sweep) -> dict[str, Any]:
    """Evaluates the best trial on test, and the trial with the config's own values beside it.

    Each becomes a run that is complete: with calibration, detector, `evaluate/` and a report. The
    result is added to `test.json`. A trial that has been evaluated is not evaluated again.

    Args:
      sweep: The sweep, which has a complete trial.

    Returns:
      The entry of `test.json`: "best" and "own", each with the trial's number and metrics.

    Raises:
      UserError: No trial is complete, or the sweep has no test split.
      Stopped: SIGINT or SIGTERM came. The same command starts the evaluation again.
    """
    best = sweep.study.best()
    if best is None:
        raise UserError(f"{sweep.workdir}: no trial is complete, so none can be evaluated")
    if config_lib.split_source(sweep.config, "test").fraction == 0:
        raise UserError("config.data.test is 0, so there are no images to evaluate the best trial")
    trials = sweep.study.trials()
    if running := sum(each.state == RUNNING for each in trials):
        raise UserError(
            f"{sweep.workdir}: {console.counted(running, 'trial has', 'trials have')} not ended; "
            "expected --test after the sweep, since the best trial may still change"
        )
    tests = outcome.read_tests(sweep.workdir)
    known = next((entry for entry in tests if entry["best"]["trial"] == best.number), None)
    if known is not None:
        console.log_info(f"trial {best.number} was evaluated on {known['date']}")
        return known
    numbers = {"best": best.number}
    own = outcome.own_trial(sweep.config, sweep.space, sweep.study)
    if own is not None and own.number != best.number:
        numbers["own"] = own.number
    entry: dict[str, Any] = {"date": datetime.date.today().isoformat(), "trials": len(trials)}
    for role, number in numbers.items():
        folder = trial_folder(sweep.workdir, number)
        entry[role] = {"trial": number, **_finish(folder, sweep.config)}
    outcome.write_tests(sweep.workdir, [*tests, entry])
    sweep.write_outcome(RESAMPLES)
    console.log_info(f"page: {sweep.workdir / PAGE}")
    return entry


def _finish(folder: pathlib.Path, requested: Config) -> dict[str, Any]:
    """Evaluates a trial, as a run is evaluated at its end; returns its metrics on test.

    Args:
      folder: Folder of the trial.
      requested: The sweep's config, which says where the images are now.
    """
    config = config_lib.resumed(config_lib.load_json(folder / CONFIG_FILE), requested)
    with (
        lock_workdir(folder),
        graceful_shutdown(config.grace_seconds) as stop,
        stop.interruptible("stopped during the evaluation; the same command repeats it"),
    ):
        splits = with_distorted(config, prepare_splits(config, folder, resumes=True), folder)
        atomic_write(folder / CONFIG_FILE, config_lib.to_json(config))
        result = evaluator.finish(config, folder, splits)["test"]
    found = {key: result[key] for key in _SHOWN if key in result}
    return {**found, "ci95": result["ci95"].get("accuracy")}
