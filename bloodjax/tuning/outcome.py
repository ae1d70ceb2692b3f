"""What a sweep found: its best config as a file, and its page."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bloodjax import config as config_lib
from bloodjax.config import Config
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.report import sweep_page
from bloodjax.report.sweep_page import SweepContent
from bloodjax.training.divergence import FILE as ROLLBACKS
from bloodjax.tuning.space import Choice, Space, own_values
from bloodjax.tuning.study import COMPLETE, MIN_COMPLETE, Study, Trial

BEST_FILE = "best.py"
TEST_FILE = "test.json"
PAGE = pathlib.PurePath("report", "index.html")


def write(
    workdir: pathlib.Path, config: Config, space: Space, study: Study, resamples: int = 0
) -> None:
    """Writes `best.py` and the page of a sweep.

    Args:
      workdir: Folder of the sweep.
      config: Config of all trials, except the keys that are swept.
      space: The search space.
      study: The trials.
      resamples: Resamples for the intervals of the importances; 0 for none.
    """
    best = study.best()
    if best is not None:
        chosen = config_lib.with_values(config, best.values)
        text = best_config_file(chosen, best, len(study.trials()), config)
        atomic_write(workdir / BEST_FILE, text)
    make_folder(workdir / PAGE.parent)
    page = sweep_page.build(content(workdir, config, space, study, resamples))
    atomic_write(workdir / PAGE, page)


def content(
    workdir: pathlib.Path, config: Config, space: Space, study: Study, resamples: int = 0
) -> SweepContent:
    """What the page shows; see `write`."""
    best, own = study.best(), own_trial(config, space, study)
    return SweepContent(
        name=workdir.resolve().name,
        measure=measure(config),
        larger_is_better=study.larger_is_better,
        network=config.model.name,
        space={key: distribution.describe() for key, distribution in space.items()},
        log_keys=tuple(k for k, d in space.items() if not isinstance(d, Choice) and d.log),
        options={k: d.labels for k, d in space.items() if isinstance(d, Choice)},
        trials=[_row(workdir, space, trial) for trial in study.trials()],
        best=None if best is None else best.number,
        own=None if own is None else own.number,
        importances=study.importances(resamples),
        min_complete=MIN_COMPLETE,
        tests=read_tests(workdir),
        best_file=str(workdir / BEST_FILE),
        workdir=str(workdir),
        has_test=config_lib.split_source(config, "test").fraction != 0,
    )


def _row(workdir: pathlib.Path, space: Space, trial: Trial) -> dict[str, Any]:
    folder = trial_folder(workdir, trial.number)
    remark = trial.notes.get("error", "")
    if not remark and (folder / ROLLBACKS).exists():
        remark = "diverged, and went on with a lower learning rate"
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "values": {
            key: space[key].label(value) if isinstance(space[key], Choice) else value
            for key, value in trial.values.items()
        },
        "epochs": dict(trial.epochs),
        "seconds": trial.seconds,
        "remark": remark,
    }


def own_trial(config: Config, space: Space, study: Study) -> Trial | None:
    """The trial with the config's own values, which others are compared with.

    Returns:
      The first trial; None if it is not complete, or the space lacks one of the values.
    """
    if own_values(config, space) is None:
        return None
    return next((each for each in study.trials()[:1] if each.state == COMPLETE), None)


def read_tests(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The evaluations on test so far, from `test.json`."""
    path = workdir / TEST_FILE
    return read_json(path, "a sweep's evaluations", list) if path.exists() else []


def write_tests(workdir: pathlib.Path, tests: list[dict[str, Any]]) -> None:
    """Writes `test.json`."""
    atomic_write(workdir / TEST_FILE, json.dumps(tests, indent=2) + "\n")


def best_config_file(config: Config, best: Trial, trials: int, base: Config) -> str:
    """A config file, for `--config`, with every value of `config` that is not the default.

    Args:
      config: Config of the best trial.
      best: The best trial.
      trials: Number of trials of the sweep.
      base: Config of the sweep.
    """
    values = sorted(config_lib.changes(config).items())
    lines = "".join(f"        {json.dumps(key)}: {value!r},\n" for key, value in values)
    return (
        f'"""Best of {trials} trials: trial {best.number}, {measure(base)} {best.value:.4f}."""\n'
        "\n"
        "from bloodjax import config as config_lib\n"
        "\n\n"
        "def get_config():\n"
        f'    """The values of trial {best.number}; the sweep chose {len(best.values)}."""\n'
        "    config = config_lib.defaults()\n"
        f"    values = {{\n{lines}    }}\n"
        "    config.update_from_flattened_dict(values)\n"
        "    return config\n"
    )


def trial_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Workdir of a trial of the sweep in `workdir`."""
    return workdir / "trials" / f"{number:05}"


def measure(config: Config) -> str:
    """What a sweep compares, such as "validation loss"."""
    options = config.early_stopping
    where = {"validation_distorted": " (distorted)", "both": " (also distorted)"}
    name = options.metric.replace("_", " ")
    return f"validation {name}{where.get(options.set, '')}"


def describe(values: Mapping[str, Any]) -> str:
    """Values by config key as one line."""
    return ", ".join(f"{key}={sweep_page.format_value(value)}" for key, value in values.items())
