"""A sweep: many runs with different values of a few config keys, chosen by what earlier ones gave.

WORKDIR/sweep.json          config and space of the sweep, and the name of its study
WORKDIR/splits.json, audit/ the splits, which are drawn once, for all trials
WORKDIR/trials/00000, ...   the trials, each with a workdir of its own
WORKDIR/best.py             config file of the best trial
WORKDIR/report/index.html   the page
WORKDIR/test.json           the evaluations on test, of which there should be one

No trial predicts a test image; `final_test` does, for the best one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.config import PHASES, Config
from bloodjax.config.validation import METRICS
from bloodjax.errors import Stopped, UserError
from bloodjax.io.files import atomic_write, disk_full_reason, make_folder, read_json
from bloodjax.training import metric_writer, trainer
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.workdir import CHECKPOINTS, CONFIG_FILE, SWEEP_FILE
from bloodjax.tuning import locks, outcome
from bloodjax.tuning.outcome import describe, measure, trial_folder
from bloodjax.tuning.space import Distribution, Space, lacking, own_values
from bloodjax.tuning.study import COMPLETE, FAILED, PRUNED, RUNNING, Study, Trial
from bloodjax.tuning.trial_data import TrialData

# Times that a worker may die at a trial. The next one records it as failed.
_MAX_DEATHS = 3
# Trials of a worker that may fail one after another, with none that does not, before it gives up.
_MAX_FAILURES = 3
# Trials that may fail one after another in the same words, even if others did not before: so many
# lack something that all need, such as weights on a disk that is away.
_MAX_ALIKE = 10
# Resamples for the intervals of importance on the page that is written last.
RESAMPLES = 20
# Trains a run: config, workdir, splits, and what is asked after each epoch; `bloodjax.run.fit`.
Fit = Callable[[Config, pathlib.Path, Splits, Callable[[Mapping[str, Any]], bool]], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What may differ between the commands that work on one sweep.

    Attributes:
      storage: URL of the storage.
      trials: Number of trials of the whole sweep.
      pruner: One of `study.PRUNERS`.
      keep: Number of the best trials that keep their checkpoints.
    """

    storage: str
    trials: int
    pruner: str = "median"
    keep: int = 5


class Sweep:
    """A sweep that is open.

    Attributes:
      config: Config of all trials, except the keys that are swept.
      space: The search space.
      workdir: Folder of the sweep.
      study: Its trials.
    """

    def __init__(
        self, config: Config, space: Space, workdir: pathlib.Path, options: Options
    ) -> None:
        """Opens the sweep in `workdir`, or starts one.

        Raises:
          UserError: The config cannot be swept, its data cannot be read, or the folder has
            another sweep.
        """
        _check(config)
        self.config, self.space, self.workdir = config, space, workdir
        self._options = options
        self._data = TrialData(config, workdir)
        make_folder(workdir / "trials")
        with self._lock():
            name = _stored_name(workdir, config, space)
            # Reading takes long, and meanwhile other workers wait for the lock. Splits without a
            # sweep are those of a command that failed, perhaps with another config.
            if name is None:
                self._data.read(config, resumes=False)
            self.study = open_study(config, space, options, name)
            if name is None:
                content = {"study": self.study.name, **_content(config, space)}
                atomic_write(
                    workdir / SWEEP_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n"
                )
        self._data.read(config)

    def work(self, fit: Fit) -> None:
        """Runs trials until the sweep has all; also those whose worker was killed or stopped.

        Args:
          fit: Trains a run.

        Raises:
          UserError: The first trials all failed, ten failed one after another in the same words,
            or the disk is full.
          Stopped: SIGINT or SIGTERM came. The same command resumes the trial.
        """
        failures: list[str] = []
        works = False
        while (claimed := self._claim()) is not None:
            number, claim = claimed
            with claim:
                line = self._run(number, fit)
            works = works or not line
            failures = [*failures, line] if line else []
            gives_up = len(failures) >= _MAX_FAILURES and not works
            if gives_up or failures[-_MAX_ALIKE:].count(line) == _MAX_ALIKE:
                raise UserError(
                    f"{self.workdir}: {len(failures)} trials failed one after another; the last "
                    f"one: {line}"
                )

    def finish(self) -> None:
        """Writes the page with all that it has, and logs what was found.

        Raises:
          UserError: All trials have ended, and none is complete.
        """
        trials, best = self.study.trials(), self.study.best()
        with self._lock():
            self.write_outcome(RESAMPLES)
        running = sum(each.state == RUNNING for each in trials)
        if running:
            are = console.counted(running, "trial is", "trials are")
            console.log_info(f"{are} still running in other workers")
        page = self.workdir / outcome.PAGE
        if best is None and running:
            return
        if best is None:
            last = next((each.notes["error"] for each in trials if "error" in each.notes), "")
            raise UserError(f"{page}: no trial is complete; the first error: {last or 'none'}")
        line = f"best: trial {best.number}, {self.measure} {best.value:.4f}"
        if (own := outcome.own_trial(self.config, self.space, self.study)) is not None:
            line += f" (the config's own values: {own.value:.4f})"
        console.log_info(f"{line}: {describe(best.values)}")
        console.log_info(f"best config: {self.workdir / outcome.BEST_FILE}")
        console.log_info(f"page: {page}")

    def folder(self, number: int) -> pathlib.Path:
        """Workdir of a trial."""
        return trial_folder(self.workdir, number)

    def trial_config(self, values: Mapping[str, Any]) -> Config:
        """The config of a trial with these values."""
        return config_lib.with_values(self.config, values)

    def write_outcome(self, resamples: int = 0) -> None:
        """Writes the best config and the page; see `outcome.write`."""
        outcome.write(self.workdir, self.config, self.space, self.study, resamples)

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return locks.held(self.workdir / "lock")

    def _claim(self) -> tuple[int, TextIO] | None:
        """A trial for this worker and the lock on it: one without a worker, or a new one."""
        with self._lock():
            known = self.study.trials()
            for trial in known:
                if trial.state != RUNNING:
                    continue
                make_folder(self.folder(trial.number))
                claim = locks.claim(self.folder(trial.number) / "worker")
                if claim is None:
                    continue  # its worker is alive
                if self._may_go_on(trial):
                    return trial.number, claim
                claim.close()
            if len(known) >= self._options.trials:
                return None
            number = self.study.ask()
            make_folder(self.folder(number))
            return number, locks.claim(self.folder(number) / "worker")

    def _may_go_on(self, trial: Trial) -> bool:
        """Records that a trial's worker is gone; whether another one is to take the trial."""
        if trial.notes.get("stopped"):
            self.study.note(trial.number, stopped=False)
            return True
        deaths = trial.notes.get("deaths", 0) + 1
        self.study.note(trial.number, deaths=deaths)
        if deaths < _MAX_DEATHS:
            console.log_info(f"trial {trial.number}: its worker is gone; trying again")
            return True
        self._fail(
            trial.number,
            f"{deaths} workers were killed while they ran it, which happens when a machine runs "
            "out of memory",
        )
        return False

    def _run(self, number: int, fit: Fit) -> str:
        """Runs a trial; returns why it failed, or ""."""
        # The first trial has the config's own values: the sweep has to beat them.
        own = self.own if number == 0 else None
        if number == 0 and own is None:
            lacks = describe(lacking(self.config, self.space))
            console.log_info(
                f"no trial has the config's own values, because the space lacks {lacks}"
            )
        values = self.study.choose(number, own)
        title = "the config's own values" if own else describe(values)
        console.log_info(f"trial {number} ({number + 1} of {self._options.trials}): {title}")
        try:
            config = self.trial_config(values)
            splits = self._data.prepare(config, self.folder(number))
            is_pruned = self._fit(fit, number, config, splits, never=own is not None)
        except Stopped:
            self.study.note(number, stopped=True)
            raise
        except Exception as error:
            if disk_full_reason(error) is not None:
                self.study.note(number, stopped=True)
                raise
            if isinstance(error, UserError):
                return self._fail(number, str(error))
            if not _is_out_of_memory(error):
                self._fail(number, f"{type(error).__name__}: {error}")
                raise
            line = str(error).partition("\n")[0][:200]
            return self._fail(number, f"out of memory: {line}")
        finally:
            jax.clear_caches()  # the next trial's steps are other programs
        history = self._history(number, config)
        finite = [value for value in history.values() if math.isfinite(value)]
        if not finite:
            return self._fail(number, f"no epoch has a finite {self.measure}")
        value = (max if self.study.larger_is_better else min)(finite)
        self.study.finish(number, PRUNED if is_pruned else COMPLETE, None if is_pruned else value)
        best = self.study.best()
        line = f"trial {number}: {self.measure} {value:.4f}"
        if is_pruned:
            line += f", ended after epoch {max(history)} because others were better by then"
        if best is not None:
            line += f"; best so far {best.value:.4f} (trial {best.number})"
        console.log_info(line)
        with self._lock():
            self._remove_checkpoints()
            self.write_outcome()
        return ""

    @property
    def own(self) -> dict[str, Any] | None:
        """The config's own values of the swept keys; None if the space lacks one of them."""
        return own_values(self.config, self.space)

    @property
    def measure(self) -> str:
        """What is compared, such as "validation loss"."""
        return measure(self.config)

    def _fit(self, fit: Fit, number: int, config: Config, splits: Splits, never: bool) -> bool:
        """Trains a trial; returns whether it was pruned, which it is not if `never`."""
        epochs = sum(config.phases[name].epochs for name in PHASES)
        pruned = False

        def ends(_: object = None) -> bool:
            nonlocal pruned
            history = self._history(number, config)
            self.study.report(number, history)
            is_over = not history or max(history) >= epochs
            pruned = not never and not is_over and self.study.is_hopeless(number)
            return pruned

        # A worker may have been killed after it saved an epoch and before it reported that.
        if not ends():
            fit(config, self.folder(number), splits, ends)
        return pruned

    def _history(self, number: int, config: Config) -> dict[int, float]:
        """Epoch -> validation value of the epochs that a trial has trained."""
        entries = metric_writer.read_history(self.folder(number), "epoch")
        return {entry["epoch"]: trainer.monitored(config, entry) for entry in entries}

    def _fail(self, number: int, line: str) -> str:
        self.study.note(number, error=" ".join(line.split()))
        self.study.finish(number, FAILED)
        shutil.rmtree(self.folder(number) / CHECKPOINTS, ignore_errors=True)
        console.log_info(f"trial {number} failed: {line}")
        return line

    def _remove_checkpoints(self) -> None:
        """Removes the checkpoints of all trials but the first, the best ones and those running."""
        trials = self.study.trials()
        sign = -1 if self.study.larger_is_better else 1
        complete = sorted(
            (each for each in trials if each.state == COMPLETE),
            key=lambda each: (sign * each.value, each.number),
        )
        kept = {0, *(each.number for each in complete[: self._options.keep])}
        for each in trials:
            ended = each.state in (COMPLETE, PRUNED, FAILED)
            if ended and not (each.state == COMPLETE and each.number in kept):
                shutil.rmtree(self.folder(each.number) / CHECKPOINTS, ignore_errors=True)


def open_study(config: Config, space: Space, options: Options, name: str | None) -> Study:
    """Opens the study of a sweep; creates one if `name` is None."""
    return Study(
        options.storage,
        name,
        space,
        larger_is_better=METRICS[config.early_stopping.metric],
        seed=config.seed,
        pruner=options.pruner,
        epochs=_most_epochs(config, space),
    )


def _most_epochs(config: Config, space: Space) -> int:
    """Epochs of the longest trial."""
    total = 0
    for name in PHASES:
        swept: Distribution | None = space.get(f"phases.{name}.epochs")
        total += int(max(swept.examples)) if swept else config.phases[name].epochs
    return total


def _check(config: Config) -> None:
    if config.folds:
        raise UserError(
            f"config.folds is {config.folds}, expected 0: a sweep compares trials on one "
            "validation split; run the best config with folds"
        )
    if config_lib.split_source(config, "validation").fraction == 0:
        raise UserError("config.data.validation is 0, expected images to compare the trials on")


def _content(config: Config, space: Space) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "space": {key: distribution.describe() for key, distribution in space.items()},
    }


def _stored_name(workdir: pathlib.Path, config: Config, space: Space) -> str | None:
    """Name of the study of the sweep in `workdir`; None if it has no sweep.

    Raises:
      UserError: The folder has a sweep with another config or space, or a run.
    """
    if (workdir / CONFIG_FILE).exists():
        raise UserError(f"--workdir={workdir}: contains a run, expected another --workdir")
    if not (workdir / SWEEP_FILE).exists():
        return None
    keys = ("study", "config", "space")
    stored = read_json(
        workdir / SWEEP_FILE, "a sweep", lambda content: {k: content[k] for k in keys}
    )
    changed = config_lib.differences(config_lib.validate(stored["config"]), config)
    new = _content(config, space)["space"]
    changed += [
        f"{key}: {stored['space'].get(key, 'not swept')} -> {new.get(key, 'not swept')}"
        for key in sorted(stored["space"].keys() | new.keys())
        if stored["space"].get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir}: contains a sweep with another config or space "
            f"({'; '.join(changed[:3])}); expected the same, or another --workdir and --storage"
        )
    return stored["study"]


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text
