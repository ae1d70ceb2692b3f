"""What a run does if a loss or gradient is not finite: skip the step, roll back, or end.

1. A step whose loss or gradient is not finite is skipped on the device (`train_step.train_step`).
2. After `config.divergence.skip` consecutive skipped steps the device skips every further step, so
   it does not matter when the host notices. The run then rolls back to the latest checkpoint from
   before the first of these steps, or to its start, and continues with a lower learning rate.
3. After `config.divergence.rollbacks` rollbacks, the next divergence ends the run.

Rollbacks are recorded in `rollbacks.json` and not in the checkpoint: rewriting the checkpoint that
the run rolls back to would leave a moment without it. A record counts for every later start, from
whichever checkpoint.
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
from bloodjax.training.metric_writer import MetricWriter, read_history

FILE = "rollbacks.json"


class Diverged(Exception):
    """Too many consecutive steps have a loss or gradient that is not finite.

    Attributes:
      step: Number of steps before the first of them.
    """

    def __init__(self, step: int):
        super().__init__(f"the loss or its gradient is not finite at step {step + 1}")
        self.step = step


class Divergence:
    """Detects that a run diverges, and rolls it back.

    Attributes:
      rollbacks: Log entries of all rollbacks since the run's first start. Their "rate" is the
        factor of the learning rate from there on.
      skipped: Number of skipped steps in the epoch, as of the latest `sync_metrics`.
    """

    def __init__(
        self, config: Config, workdir: pathlib.Path, checkpoints: Checkpoints, steps_per_epoch: int
    ):
        """Reads `rollbacks.json`.

        Raises:
          UserError: The file is damaged.
        """
        self._options, self._batch_size = config.divergence, config.batch_size
        self._checkpoints, self._steps_per_epoch = checkpoints, steps_per_epoch
        self._file = workdir / FILE
        self.skipped, self._bad_step, self._epoch = 0, -1, 0
        self.rollbacks: list[dict[str, Any]] = _read(self._file)

    @property
    def lr_scale(self) -> float:
        """Factor of the learning rate."""
        return self._options.factor ** len(self.rollbacks)

    def sync_metrics(self, sums: Metrics, step: int) -> dict[str, float]:
        """Waits for the device; returns the epoch's mean loss and accuracy so far.

        Args:
          sums: Metrics after `step`.
          step: Step of the run.

        Raises:
          Diverged: Too many consecutive steps were skipped, or a whole epoch was.
        """
        sums = jax.device_get(sums)
        bad_step, count = int(sums.bad_step), float(sums.count)
        in_a_row = step - bad_step if bad_step >= 0 else 0
        done = (step - 1) % self._steps_per_epoch + 1
        if in_a_row > self._options.skip or (done == self._steps_per_epoch and count == 0):
            raise Diverged(bad_step)
        skipped = done - round(count / self._batch_size)
        epoch = (step - 1) // self._steps_per_epoch
        if skipped > (self.skipped if epoch == self._epoch else 0):
            console.log_info(
                f"step {step}: {skipped} of this epoch's {done} steps skipped, because their loss "
                "or gradient is not finite"
            )
        self.skipped, self._bad_step, self._epoch = skipped, bad_step, epoch
        mean = count or float("nan")
        return {"loss": float(sums.loss) / mean, "accuracy": float(sums.correct) / mean}

    def check(self, probabilities: np.ndarray, step: int) -> None:
        """Raises `Diverged` if the predictions after `step` are not finite."""
        if not np.isfinite(probabilities).all():
            raise Diverged(step if self._bad_step < 0 else self._bad_step)

    def rollback(self, diverged: Diverged, step: int) -> None:
        """Deletes the checkpoints from after the last good step, and records the rollback.

        Args:
          diverged: The divergence.
          step: Step of the run at which it was noticed.

        Raises:
          UserError: The run has used up its rollbacks.
        """
        good = self._checkpoints.latest_before(diverged.step)
        if len(self.rollbacks) >= self._options.rollbacks:
            kept = (
                f"the last good checkpoint is of step {good}" if good else "there is no checkpoint"
            )
            raise UserError(
                f"{diverged}; {kept} in {self._checkpoints.directory}; expected a finite loss: "
                "lower the learning_rate, in a new --workdir"
            )
        # A run that is killed between these two calls diverges again at the same step.
        self._checkpoints.drop_after(good)
        lr_scale = self.lr_scale * self._options.factor
        self.rollbacks.append(
            {
                "event": "rollback",
                "step": good or 0,
                "from": step,
                "bad_step": diverged.step + 1,
                "rate": lr_scale,
            }
        )
        atomic_write(self._file, json.dumps(self.rollbacks, indent=2) + "\n")
        self.skipped = 0
        where = f"to the checkpoint of step {good}" if good else "to the run's start"
        console.log_info(
            f"{diverged}; rolling back {where} with {self.lr_scale:.3g} times the learning rate "
            f"(rollback {len(self.rollbacks)} of at most {self._options.rollbacks})"
        )

    def log_rollbacks(self, writer: MetricWriter, workdir: pathlib.Path) -> None:
        """Writes the rollbacks that the log lacks."""
        logged = read_history(workdir, "rollback")
        for entry in self.rollbacks:
            if entry not in logged:
                writer.write(entry)

    def log_skipped(self, writer: MetricWriter, step: int) -> None:
        """Writes the number of skipped steps in the epoch that ends at `step`, unless it is 0."""
        if self.skipped:
            writer.write({"event": "skipped", "step": step, "skipped": self.skipped})


def _entries(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise TypeError("not a list")
    return [{**entry, "rate": float(entry["rate"])} for entry in content]


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return read_json(path, "a run's rollbacks", _entries)
