"""Search spaces: config keys, and the values that a sweep tries for each.

A space file defines `get_space()`, which returns a dictionary:

    from bloodjax.tuning import choice, log_uniform

    def get_space():
        return {
            "phases.finetune.learning_rate": log_uniform(1e-4, 1e-2),
            "loss.label_smoothing": choice(0.0, 0.05, 0.1),
        }
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from bloodjax import config as config_lib
from bloodjax.config import PHASES, Config
from bloodjax.errors import UserError, did_you_mean

_FOLDER = pathlib.Path(__file__).parent / "spaces"
# Keys of `data` that may be swept, because the images of each split stay the same.
_OF_DATA = ("data.image_size", "data.fit", "data.sampling")
# Keys that change what validation measures, which images it has, or nothing that it measures.
_FIXED = (
    *("data.", "early_stopping.metric", "early_stopping.set", "evaluation.", "folds", "seed"),
    *("checkpoint_minutes", "grace_seconds", "model.source.", "parallel", "peer_timeout"),
    *("profile", "sharding", "steps_per_call", "trackers", "tracking."),
)


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
      low: Smallest value.
      high: Largest value.
      log: Whether equal ratios are equally likely, instead of equal differences.
      whole: Whether the numbers are integers.
    """

    low: int | float
    high: int | float
    log: bool = False
    whole: bool = False

    def __post_init__(self):
        numbers = (int,) if self.whole else (int, float)
        kind = "integers" if self.whole else "finite numbers"
        for value in (self.low, self.high):
            is_number = isinstance(value, numbers) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise ValueError(f"low is {self.low!r} and high {self.high!r}, expected {kind}")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}, expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, expected a number above 0 on a log scale")

    @property
    def examples(self) -> tuple[int | float, ...]:
        """Values to check against the config's rules."""
        return (self.low, self.high) if self.whole else (float(self.low), float(self.high))

    def contains(self, value: Any) -> bool:
        """Whether a value of the config is in the range."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = is_number and self.low <= value <= self.high
        return fits and (not self.whole or value == int(value))

    def describe(self) -> str:
        """The range as a space file writes it."""
        if self.whole:
            return f"integer({self.low}, {self.high}{', log=True' * self.log})"
        return f"{'log_' * self.log}uniform({self.low:g}, {self.high:g})"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, such as numbers, texts or tuples."""

    values: tuple[Any, ...]

    def __post_init__(self):
        if len(self.values) < 2:
            raise ValueError("choice() has fewer than two values")
        labels = [self.label(value) for value in self.values]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"choice() has {twice[0]} more than once")

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values to check against the config's rules."""
        return self.values

    @staticmethod
    def label(value: Any) -> str:
        """The text that stands for a value in the storage and on the page."""
        return value if isinstance(value, str) else repr(value)

    @property
    def labels(self) -> tuple[str, ...]:
        """The text of each value."""
        return tuple(map(self.label, self.values))

    def contains(self, value: Any) -> bool:
        """Whether a value of the config is one of the values."""
        return value in self.values

    def describe(self) -> str:
        """The choice as a space file writes it."""
        return f"choice({', '.join(map(repr, self.values))})"


Distribution = Range | Choice
Space = Mapping[str, Distribution]


def uniform(low: int | float, high: int | float) -> Range:
    """Numbers from `low` to `high`."""
    return Range(low, high)


def log_uniform(low: int | float, high: int | float) -> Range:
    """Numbers from `low` to `high`, whose logarithms are equally likely; for rates."""
    return Range(low, high, log=True)


def integer(low: int, high: int, log: bool = False) -> Range:
    """Integers from `low` to `high`, both included."""
    return Range(low, high, log=log, whole=True)


def choice(*values: Any) -> Choice:
    """One of the values: numbers, booleans, texts or tuples."""
    return Choice(values)


def names() -> list[str]:
    """Names of the spaces inside the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def load(path: str, config: Config) -> dict[str, Distribution]:
    """Runs a space file and checks it against a config.

    Args:
      path: A name from `names`, or the path of a Python file that defines `get_space()`.
      config: Config whose keys are swept.

    Raises:
      UserError: There is no such file; it cannot be run; it returns no space; or a key or a value
        is not allowed.
    """
    file = _locate(path)
    space = config_lib.call_in_file(file, "get_space", "--space")
    where = f"--space={path}"
    if not isinstance(space, Mapping) or not space:
        raise UserError(
            f"{where}: get_space() returns {type(space).__name__}, expected a dictionary of config "
            "keys and distributions, such as log_uniform(1e-4, 1e-2)"
        )
    known = config_lib.flatten(config)
    for key, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise UserError(
                f"{where}: {key} is {distribution!r}, expected uniform, log_uniform, integer or "
                "choice"
            )
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(f"{where}: unknown config key {key!r}: {hint}")
        if key.startswith(_FIXED) and key not in _OF_DATA:
            raise UserError(
                f"{where}: {key} cannot be swept, because trials with different values could not "
                "be compared by validation, or would not differ; set it with "
                f"--config.{key}=VALUE for all trials"
            )
        for value in distribution.examples:
            _check(where, config, key, value)
    for key in (f"phases.{name}.learning_rate" for name in PHASES):
        if key in space and "learning_rate" in space:
            raise UserError(
                f"{where}: learning_rate is that of all phases, so {key} would have no effect; "
                "expected one of them"
            )
    return dict(space)


def _locate(path: str) -> str:
    if path in names():
        return str(_FOLDER / f"{path}.py")
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        raise UserError(
            f"--space={path}: no such file; expected a Python file with get_space(), or one of "
            f"{', '.join(names())}"
        )
    return file


def _check(where: str, config: Config, key: str, value: Any) -> None:
    try:
        config_lib.with_values(config, {key: value})
    except UserError as error:
        # Two keys may only fit together; a trial with values that do not is recorded as failed.
        if f"config.{key} " in str(error):
            raise UserError(f"{where}: {error}") from error


def own_values(config: Config, space: Space) -> dict[str, Any] | None:
    """The values of the swept keys in `config`; None if the space lacks one of them."""
    known = config_lib.flatten(config)
    return None if lacking(config, space) else {key: known[key] for key in space}


def lacking(config: Config, space: Space) -> dict[str, Any]:
    """The values of swept keys in `config` that the space lacks."""
    known = config_lib.flatten(config)
    return {key: known[key] for key in space if not space[key].contains(known[key])}
