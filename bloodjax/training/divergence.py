"""What a run does about a loss or gradient that is not finite: it skips, goes back, and stops.

1. A step whose loss or gradient is not finite is skipped on the device (`steps.train_step`).
2. After more than `config.divergence.skip` in a row the device takes no step any longer, so that it
   does not matter when the host looks. Then the run goes back to the last checkpoint of which a
   step was still good, or to its start, with a lower learning rate from there on.
3. After `config.divergence.rollbacks` of these, the next one ends the run.

A rollback is recorded in `rollbacks.json`, and not in the checkpoint, which cannot be written anew
without a moment in which there is none. What was recorded holds for every later start: of a
checkpoint that a run went back to, and of those that it wrote since.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np

from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Metrics
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json
from bloodjax.training import metric_writer

FILE = "rollbacks.json"


class Diverged(Exception):
    """No step of the run is good any longer.

    Attributes:
      step: steps that were taken before the first that is not good.
    """

    def __init__(self, step: int):
        super().__init__(f"the loss or its gradient is not finite at step {step + 1}")
        self.step = step


class Divergence:
    """A run's watch over its steps, and what came of it.

    Attributes:
      rollbacks: their entries in `metrics.jsonl`, from the run's first start on.
      skipped: how many steps of the epoch were, at the latest look.
    """

    def __init__(
        self, config: Config, workdir: pathlib.Path, checkpoints: Checkpoints, per_epoch: int
    ):
        """`per_epoch` is the number of steps in an epoch.

        Raises:
          UserError: the record of the rollbacks cannot be read.
        """
        self._options, self._batch_size = config.divergence, config.batch_size
        self._checkpoints, self._per_epoch = checkpoints, per_epoch
        self._file = workdir / FILE
        self.skipped, self._bad_step = 0, -1
        self.rollbacks: list[dict[str, Any]] = _read(self._file)

    @property
    def lr_scale(self) -> float:
        """What the learning rate is multiplied by."""
        return self._options.factor ** len(self.rollbacks)

    def sync_metrics(self, sums: Metrics, step: int) -> dict[str, float]:
        """Waits for the device; the epoch's mean loss and accuracy so far.

        Args:
          sums: as they were after `step`.
          step: of the run.

        Raises:
          Diverged: more steps in a row than may be were skipped, or a whole epoch was.
        """
        sums = jax.device_get(sums)
        bad_step, count = int(sums.bad_step), float(sums.count)
        in_a_row = step - bad_step if bad_step >= 0 else 0
        done = (step - 1) % self._per_epoch + 1
        if in_a_row > self._options.skip or (done == self._per_epoch and count == 0):
            raise Diverged(bad_step)
        skipped = done - round(count / self._batch_size)
        if skipped > self.skipped:
            console.log_info(
                f"step {step}: {skipped} of this epoch's {done} steps skipped, for their loss or "
                "gradient is not finite"
            )
        self.skipped, self._bad_step = skipped, bad_step
        mean = count or float("nan")
        return {"loss": float(sums.loss) / mean, "accuracy": float(sums.correct) / mean}

    def check(self, probabilities: np.ndarray, step: int) -> None:
        """Raises Diverged where the predictions after `step`, just seen, are not finite."""
        if not np.isfinite(probabilities).all():
            raise Diverged(step if self._bad_step < 0 else self._bad_step)

    def rollback(self, found: Diverged, step: int) -> None:
        """Makes the last good checkpoint the latest, or leaves none; records it.

        Args:
          found: what was seen,
          step: and at which step.

        Raises:
          UserError: the run has gone back as often as it may.
        """
        good = self._checkpoints.latest_before(found.step)
        if len(self.rollbacks) >= self._options.rollbacks:
            kept = (
                f"the last good checkpoint is of step {good}" if good else "there is no checkpoint"
            )
            raise UserError(
                f"{found}; {kept} in {self._checkpoints.directory}; expected a finite loss: lower "
                "the learning_rate"
            )
        # A run that is killed between these two comes to the same point once more.
        self._checkpoints.drop_after(good)
        entry = {"event": "rollback", "step": good or 0, "from": step, "bad_step": found.step + 1}
        entry["rate"] = self.lr_scale * self._options.factor
        self.rollbacks.append(entry)
        atomic_write(self._file, json.dumps(self.rollbacks, indent=2) + "\n")
        self.skipped = 0
        where = f"to the checkpoint of step {good}" if good else "to the run's start"
        console.log_info(
            f"{found}; going back {where} with {self.lr_scale:.3g} times the learning rate (rollback "
            f"{len(self.rollbacks)} of at most {self._options.rollbacks})"
        )

    def log_rollbacks(self, log: metric_writer.MetricWriter, workdir: pathlib.Path) -> None:
        """Writes those that `log`, just opened, does not hold."""
        held = metric_writer.read_history(workdir, "rollback")
        for entry in self.rollbacks:
            if entry not in held:
                log.write(entry)

    def log_skipped(self, log: metric_writer.MetricWriter, step: int) -> None:
        """Writes how many steps of the epoch that ends at `step` were skipped, if any were."""
        if self.skipped:
            log.write({"event": "skipped", "step": step, "skipped": self.skipped})


def _entries(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise TypeError("not a list")
    return [{**entry, "rate": float(entry["rate"])} for entry in content]


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return read_json(path, "a run's rollbacks", _entries)
