"""The trials of a sweep in a database, and what to try next. The only module that imports optuna.

Several workers use one study at the same time. What a trial tries follows from the sweep's seed,
the trial's number and the trials before it, so a sweep of one worker that was interrupted goes on
as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna import exceptions, importance, pruners, samplers, storages, trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from bloodjax.errors import UserError
from bloodjax.tuning.space import Choice, Distribution, Space

PRUNERS = ("median", "hyperband", "none")
# States of a trial.
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
# Trials with random values, before TPE chooses (Bergstra et al. 2011).
RANDOM_TRIALS = 8
# Completed trials before the median pruner ends one.
_UNPRUNED_TRIALS = 4
# Fewer completed trials say nothing about importance.
MIN_COMPLETE = 5
# Trees of the random forest that measures importance.
_TREES = 32
_SQLITE_PATIENCE = 60  # seconds that a write waits for another worker's
_JOURNAL, _SQLITE = "journal:///", "sqlite:///"
_STATES = {
    trial.TrialState.RUNNING: RUNNING,
    trial.TrialState.WAITING: RUNNING,
    trial.TrialState.COMPLETE: COMPLETE,
    trial.TrialState.PRUNED: PRUNED,
    trial.TrialState.FAIL: FAILED,
}

optuna.logging.set_verbosity(optuna.logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the study knows about a trial.

    Attributes:
      number: Number of the trial, from 0.
      state: "running", "complete", "pruned" or "failed". A running trial's worker may be dead.
      value: Best validation value of a complete trial, else None.
      values: Config key -> value that the trial tries; empty before they were chosen.
      epochs: Epoch, counted from 1 -> validation value.
      notes: What workers noted about the trial.
      seconds: Time from the start to the end of the trial; None if it has not ended.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, Any]
    epochs: Mapping[int, float]
    notes: Mapping[str, Any]
    seconds: float | None


class Study:
    """The trials of one sweep.

    Attributes:
      name: Name of the study in its storage, which may have several.
      larger_is_better: Whether a larger validation value is better.
    """

    def __init__(
        self,
        url: str,
        name: str | None,
        space: Space,
        *,
        larger_is_better: bool,
        seed: int = 0,
        pruner: str = "median",
        epochs: int = 1,
    ):
        """Opens a study, or creates one.

        Args:
          url: Where the trials are stored: sqlite:///FILE, journal:///FILE, or the URL of a
            database that SQLAlchemy knows, such as postgresql://USER@HOST/NAME.
          name: Name of the study; None creates a new one with a name of its own.
          space: The search space.
          larger_is_better: Whether a larger validation value is better.
          seed: Seed of the values that are tried.
          pruner: One of `PRUNERS`.
          epochs: Most epochs that a trial may train for.

        Raises:
          UserError: The storage cannot be opened, or has no study of this name.
        """
        self.larger_is_better = larger_is_better
        self._space, self._seed, self._url = space, seed, url
        self._storage = _open(url)
        direction = "maximize" if larger_is_better else "minimize"
        with self._explained():
            if name is None:
                known = {each.study_name for each in self._storage.get_all_studies()}
                name = next(n for i in range(1, len(known) + 2) if (n := f"sweep-{i}") not in known)
                optuna.create_study(storage=self._storage, study_name=name, direction=direction)
            elif name not in optuna.get_all_study_names(self._storage):
                raise UserError(
                    f"--storage={without_password(url)}: has no study {name}, which this sweep was "
                    "started with; expected the same --storage, or another --workdir"
                )
            self.name = name
            self._study = optuna.load_study(
                study_name=name, storage=self._storage, pruner=_pruner(pruner, epochs)
            )

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        with self._explained():
            return [self._trial(each) for each in self._study.get_trials(deepcopy=False)]

    def ask(self) -> int:
        """Starts a new trial, and returns its number; `choose` chooses its values."""
        with self._explained():
            return self._study.ask().number

    def choose(self, number: int, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Chooses the values of a trial, once; later calls return the same.

        Args:
          number: Number of the trial.
          fixed: The values of a trial that is to try these; None to choose them.
        """
        with self._explained():
            known = self._study.get_trials(deepcopy=False)[number].params
            handle, chosen = self._handle(number), {}
            for key, distribution in self._space.items():
                if fixed is not None and key not in known:
                    self._fix(number, key, fixed[key])
                    handle = self._handle(number)
                self._study.sampler = self._sampler(number, key)
                chosen[key] = _suggest(handle, key, distribution)
            return chosen

    def _fix(self, number: int, key: str, value: Any) -> None:
        distribution = self._space[key]
        known, stored = _optuna(distribution), _stored(distribution, value)
        self._storage.set_trial_param(self._id(number), key, known.to_internal_repr(stored), known)

    def report(self, number: int, epochs: Mapping[int, float]) -> None:
        """Records the validation values of a trial's epochs; those that are known stay."""
        with self._explained():
            handle = self._handle(number)
            known = self._study.get_trials(deepcopy=False)[number].intermediate_values
            for epoch, value in epochs.items():
                if epoch not in known:
                    handle.report(value, epoch)

    def is_hopeless(self, number: int) -> bool:
        """Whether the trial's epochs so far are so much worse than others' that it is to end."""
        with self._explained():
            return bool(self._handle(number).should_prune())

    def finish(self, number: int, state: str, value: float | None = None) -> None:
        """Ends a trial.

        Args:
          number: Number of the trial.
          state: "complete", "pruned" or "failed".
          value: Best validation value of a complete trial.
        """
        states = {name: known for known, name in _STATES.items() if name != RUNNING}
        with self._explained():
            self._study.tell(number, value, states[state], skip_if_finished=True)

    def note(self, number: int, **notes: Any) -> None:
        """Stores notes about a trial, which replace those of the same name."""
        with self._explained():
            handle = self._handle(number)
            for key, value in notes.items():
                handle.set_user_attr(key, value)

    def best(self) -> Trial | None:
        """The complete trial with the best value, of equal ones the first; None without any."""
        complete = [each for each in self.trials() if each.state == COMPLETE]
        sign = -1 if self.larger_is_better else 1
        return min(complete, key=lambda each: (sign * each.value, each.number), default=None)

    def importances(self, resamples: int = 0) -> dict[str, dict[str, float]]:
        """The share of each parameter in the variance of the value, by fANOVA (Hutter et al. 2014).

        The interval is from the bootstrap over trials. It is approximate: later trials were chosen
        because of earlier ones.

        Args:
          resamples: Resamples of the bootstrap; 0 gives no intervals.

        Returns:
          Config key -> "share", and with resamples "low" and "high" of its 90 % interval; the most
          important first. Empty for fewer than `MIN_COMPLETE` complete trials.
        """
        with self._explained():
            known = self._study.get_trials(deepcopy=False, states=(trial.TrialState.COMPLETE,))
        if len(known) < MIN_COMPLETE or len({each.value for each in known}) < 2:
            return {}
        shares = self._shares(known)
        found = {key: {"share": shares[key]} for key in sorted(shares, key=lambda k: -shares[k])}
        rng = np.random.default_rng(self._seed)
        drawn: list[dict[str, float]] = []
        for _ in range(resamples):
            sample = [known[i] for i in rng.integers(len(known), size=len(known))]
            if len({each.value for each in sample}) > 1:
                drawn.append(self._shares(sample))
        for key, entry in found.items() if drawn else ():
            values = [each.get(key, 0.0) for each in drawn]
            entry["low"], entry["high"] = (float(x) for x in np.percentile(values, [5, 95]))
        return found

    def _shares(self, known: Sequence[trial.FrozenTrial]) -> dict[str, float]:
        study = optuna.create_study(direction=self._study.direction.name.lower())
        study.add_trials(known)
        evaluator = importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=self._seed)
        # A parameter with one value in all trials has no share.
        varied = [key for key in self._space if len({each.params[key] for each in known}) > 1]
        if not varied:
            return {}
        shares = importance.get_param_importances(study, evaluator=evaluator, params=varied)
        return {key: float(share) for key, share in shares.items()}

    def _handle(self, number: int) -> trial.Trial:
        """A trial that this worker or an earlier one has started."""
        return trial.Trial(self._study, self._id(number))

    def _id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _sampler(self, number: int, key: str) -> samplers.BaseSampler:
        # A sampler of its own for each value: a trial that a killed worker left half chosen gets
        # the same values as it would have.
        seed = zlib.crc32(f"{self._seed}/{number}/{key}".encode())
        return samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS,
            seed=seed,
            # Workers do not all try the same: what runs counts as bad until it has ended.
            constant_liar=True,
        )

    def _trial(self, found: trial.FrozenTrial) -> Trial:
        values = {
            key: _value(self._space[key], found.params[key])
            for key in self._space
            if key in found.params
        }
        return Trial(
            found.number,
            _STATES[found.state],
            found.value if found.state == trial.TrialState.COMPLETE else None,
            values,
            found.intermediate_values,
            found.user_attrs,
            found.duration.total_seconds() if found.duration else None,
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with _explained(self._url):
            yield


def default_folder(url: str) -> pathlib.Path | None:
    """Folder for the runs of a sweep: the file of its storage without the suffix.

    None if it has no file, or one without a suffix, which cannot be a folder as well.
    """
    file = _file(url)
    return file.with_suffix("") if file is not None and file.suffix else None


def sqlite_url(file: pathlib.Path) -> str:
    """The URL of a storage in an SQLite file; in URLs, % and ? have a meaning of their own."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def _file(url: str) -> pathlib.Path | None:
    """The file of a storage; None if it has none."""
    if url.startswith(_JOURNAL):
        name = url.removeprefix(_JOURNAL)
    elif url.startswith(_SQLITE):
        name = urllib.parse.unquote(url.removeprefix(_SQLITE).partition("?")[0])
    else:
        return None
    return pathlib.Path(name) if name else None


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Makes an error of the storage one line."""
    try:
        yield
    except exceptions.StorageInternalError as error:
        raise UserError(_storage_error(url, error.__cause__ or error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "sqlalchemy":
            raise
        raise UserError(_storage_error(url, error)) from error


def _storage_error(url: str, error: BaseException) -> str:
    reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return f"--storage={without_password(url)}: {reason}; expected a database for the trials"


def without_password(url: str) -> str:
    """The URL of a storage, to be shown. It may lack a part, as one that was mistyped."""
    # Up to the last @, since a password may have / and @ in it.
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r":(?!/).*@", ":***@", url))


def _open(url: str) -> storages.BaseStorage:
    match = re.match(r"[a-z0-9+]+://", url)
    if match is None:
        raise UserError(
            f"--storage={without_password(url)}: expected sqlite:///FILE, journal:///FILE or the "
            "URL of a database"
        )
    file = _file(url)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith(_JOURNAL):
            journal = storages.journal.JournalFileBackend(url.removeprefix(_JOURNAL))
            with _explained(url):
                return storages.JournalStorage(journal)
        patience = {"timeout": _SQLITE_PATIENCE} if url.startswith("sqlite") else {}
        with _explained(url):
            return storages.RDBStorage(url, engine_kwargs={"connect_args": patience})
    except (ModuleNotFoundError, ImportError) as error:
        raise UserError(
            f"--storage={without_password(url)}: {error}; expected the database's Python driver "
            "to be installed"
        ) from error
    except OSError as error:
        raise UserError(
            f"--storage={without_password(url)}: {error.strerror}, expected a file to write"
        ) from error
    except ValueError as error:  # a damaged journal
        raise UserError(_storage_error(url, error)) from error


def _pruner(name: str, epochs: int) -> pruners.BasePruner:
    if name == "median":
        return pruners.MedianPruner(_UNPRUNED_TRIALS, n_warmup_steps=max(1, math.ceil(epochs / 4)))
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(2, epochs))
    return pruners.NopPruner()


def _optuna(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.labels)
    kind = IntDistribution if distribution.whole else FloatDistribution
    return kind(distribution.low, distribution.high, log=distribution.log)


def _suggest(handle: trial.Trial, key: str, distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return _value(distribution, handle.suggest_categorical(key, distribution.labels))
    suggest = handle.suggest_int if distribution.whole else handle.suggest_float
    return suggest(key, distribution.low, distribution.high, log=distribution.log)


def _stored(distribution: Distribution, value: Any) -> Any:
    """The form in which the storage has a value of the config."""
    if not isinstance(distribution, Choice):
        return value
    return distribution.labels[distribution.values.index(value)]


def _value(distribution: Distribution, stored: Any) -> Any:
    """The value of the config, given its form in the storage."""
    if not isinstance(distribution, Choice):
        return stored
    return distribution.values[distribution.labels.index(stored)]
