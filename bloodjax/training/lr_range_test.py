"""The learning-rate range test, which finds the rate for `learning_rate = "auto"`.

Smith (2017, arXiv:1506.01186) trains for some steps while the learning rate grows, and looks at the
loss: it falls, is lowest, and rises where the rate is too high. The rate here grows by the same
factor in each step, as in Gugger and Howard's `lr_find`.

The test trains a copy of the state at the start of a phase, with the phase's optimizer and the
images of its first epochs. It depends only on these and the seed, so it finds the same rate again.
The rate that it found is kept in `WORKDIR/lr_range_test`, from where a resumed run reads it.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import optax
from jaxtyping import Float

from bloodjax.checkpoints.state import TrainState
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.report import training_plots
from bloodjax.training.loader import TrainLoader
from bloodjax.training.step_config import Phase

FOLDER = "lr_range_test"
STEPS = 100
# Optimizer -> lowest and highest rate of the test.
RANGES = {"adamw": (1e-6, 1.0), "lion": (1e-7, 0.1), "sgd": (1e-5, 10.0)}
# The chosen rate, as a fraction of the highest one at which the loss was still about the lowest.
_FRACTION = 0.1
# The test ends where the mean loss of some steps exceeds this multiple of the lowest one so far. A
# single batch may do so by chance, where the loss is small.
_DIVERGED, _TOGETHER = 4.0, 5
# Standard deviation of the Gaussian that smooths the losses, in steps.
_SIGMA = 3.0
# Steps at the lowest rates, which hardly change the weights: the scatter of losses is taken from
# these, and the highest rate must lie above the first ones.
_FLAT, _FEWEST = STEPS // 3, STEPS // 10
# A loss is about the lowest if it exceeds it by at most this fraction of the fall before it, or by
# so many standard errors of a smoothed loss. What differs by less than twice as many is noise.
_OF_FALL, _ERRORS = 0.1, 4.0
_COLUMNS = ("learning_rate", "loss", "smoothed_loss")


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """A range test and what it found.

    Attributes:
      phase: Name of the phase.
      optimizer: Name of the optimizer.
      rates: Learning rate of each step.
      losses: Training loss of each step's batch, before the step.
      smoothed: Smoothed losses.
      highest: Highest rate at which the smoothed loss was about the lowest.
      learning_rate: The rate that was chosen.
      rises: Whether the loss rose above the lowest one within the test.
    """

    phase: str
    optimizer: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    highest: float
    learning_rate: float
    rises: bool

    def statement(self) -> str:
        """One line on what was found."""
        end = "" if self.rises else ", and has not risen up to the end of the test"
        return (
            f"range test of {self.phase}: the loss is lowest up to a learning rate of "
            f"{self.highest:.2g}{end}; the phase uses {self.learning_rate:.2g}"
        )


def schedule(optimizer: str) -> optax.Schedule:
    """The learning rate over the steps of the test, for an optimizer."""
    low, high = RANGES[optimizer]
    return optax.exponential_decay(low, STEPS - 1, high / low)


def measure(
    loader: TrainLoader, phase: Phase, state: TrainState, class_weights, first_step: int
) -> Iterator[float]:
    """Trains with a growing learning rate until the loss diverges, at most `STEPS` steps.

    Args:
      loader: Feeds the training split to its executor.
      phase: The phase, with an optimizer whose learning rate is `schedule`.
      state: State on the devices, at the end of an epoch; it is donated.
      class_weights: Per-class weight in the loss, on the devices.
      first_step: Step of the run.

    Yields:
      The mean loss of each step's batch.
    """
    with contextlib.closing(_train(loader, phase, state, class_weights, first_step)) as losses:
        yield from until_diverged(itertools.islice(losses, STEPS))


def _train(loader, phase, state, class_weights, first_step) -> Iterator[float]:
    """The loss of each step, until one is not finite."""
    epoch, before = first_step // loader.steps_per_epoch, (0.0, 0.0)
    while True:
        with contextlib.closing(loader.epoch(epoch, 0, phase.cached, steps_per_call=1)) as inputs:
            for num_steps, data, order in inputs:
                state, sums = loader.executor.train(
                    phase, num_steps, state, data, order, class_weights
                )
                now = (float(sums.loss), float(sums.count))
                count = now[1] - before[1]
                if count == 0:  # the loss or its gradient was not finite
                    return
                yield (now[0] - before[0]) / count
                before = now
        epoch += 1


def until_diverged(losses: Iterable[float]) -> Iterator[float]:
    """The losses up to the first one at which the mean of the last few is far above the lowest."""
    recent, lowest = collections.deque(maxlen=_TOGETHER), math.inf
    for loss in losses:
        yield loss
        recent.append(loss)
        mean = statistics.fmean(recent)
        if mean > _DIVERGED * lowest:
            return
        if len(recent) == _TOGETHER:
            lowest = min(lowest, mean)


def find(phase: str, optimizer: str, losses: Sequence[float]) -> RangeTest:
    """Chooses a learning rate from the losses of a test.

    It is a tenth of the highest rate at which the smoothed loss is about the lowest: above it by at
    most a tenth of its fall, or by four standard errors, which counts where it falls little.

    Args:
      phase: Name of the phase.
      optimizer: Name of the optimizer.
      losses: Loss of each step.

    Raises:
      UserError: The loss did not fall before it rose, so that no rate can be told.
    """
    rate_at = schedule(optimizer)
    rates = tuple(float(rate_at(step)) for step in range(len(losses)))
    smoothed = smooth(np.array(losses))
    edge, rises = 0, False
    if len(smoothed) >= _FEWEST:
        lowest = int(smoothed.argmin())
        fall = float(smoothed[: lowest + 1].max() - smoothed[lowest])
        rise = float(smoothed[lowest:].max() - smoothed[lowest])
        # The scatter of single losses, from the differences of neighbours.
        scatter = math.sqrt(np.mean(np.diff(losses[:_FLAT]) ** 2) / 2)
        error = scatter * float(np.linalg.norm(_weights(len(losses))[lowest]))
        if max(fall, rise) > 2 * _ERRORS * error:
            allowed = smoothed[lowest] + max(_OF_FALL * fall, _ERRORS * error)
            edge = int(np.flatnonzero(smoothed <= allowed)[-1])
            rises = edge < len(smoothed) - 1
    if edge < _FEWEST:
        raise UserError(
            f"config.phases.{phase}.learning_rate is auto, but in the range test the loss did not "
            f"fall at any rate from {RANGES[optimizer][0]:g}: expected a number, in a new --workdir"
        )
    return RangeTest(
        phase,
        optimizer,
        rates,
        tuple(losses),
        tuple(smoothed.tolist()),
        rates[edge],
        float(f"{_FRACTION * rates[edge]:.2g}"),
        rises,
    )


def smooth(losses: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Means of the losses with weights of a Gaussian around each step."""
    return _weights(len(losses)) @ losses


def _weights(n: int) -> Float[np.ndarray, "n n"]:
    """The weight of each step's loss in the smoothed loss of each step; rows add up to 1."""
    steps = np.arange(n)
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / _SIGMA) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def write(workdir: pathlib.Path, found: RangeTest) -> None:
    """Writes a test's curve as CSV and PNG, and then the JSON file that `read` reads."""
    folder = workdir / FOLDER
    make_folder(folder)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    rows.writerows(zip(found.rates, found.losses, found.smoothed, strict=True))
    atomic_write(folder / f"{found.phase}.csv", text.getvalue())
    atomic_write(folder / f"{found.phase}.png", training_plots.range_test_png(vars(found)))
    content = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
    atomic_write(file(workdir, found.phase), content)


def read(workdir: pathlib.Path, phase: str) -> RangeTest | None:
    """The range test of a phase in a run's workdir, or None if there is none.

    Raises:
      UserError: The file is damaged.
    """
    path = file(workdir, phase)
    return read_json(path, "a range test", _from_json) if path.exists() else None


def rate(workdir: pathlib.Path, phase: str) -> float | None:
    """The rate that `read` finds, or None.

    Raises:
      UserError: The file is damaged.
    """
    found = read(workdir, phase)
    return found.learning_rate if found else None


def file(workdir: pathlib.Path, phase: str) -> pathlib.Path:
    """The file with what the range test of a phase has found."""
    return workdir / FOLDER / f"{phase}.json"


def _from_json(content: Mapping) -> RangeTest:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    found = RangeTest(**values)
    if not 0 < float(found.learning_rate) < math.inf:
        raise ValueError(f"learning_rate {found.learning_rate!r}")
    return found
