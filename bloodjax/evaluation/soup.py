"""A soup: the average of the weights of a run's best epochs, where that is better than the best.

Wortsman et al., "Model soups", 2022, arXiv:2203.05482, whose greedy soup this is, of epochs of one
run in place of runs. BatchNorm's running averages are averaged as well.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bloodjax import metrics
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.progress import RunProgress
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import METRICS
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json
from bloodjax.training import factory

FILE = "soup.json"
FOLDER = "soup"


def make(
    config: Config,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    watched: Sequence[Dataset],
) -> None:
    """Makes the soup of a run that has ended, from the epochs that `config.soup` had kept.

    They are taken from the best on, each one that leaves the average no worse on the sets
    `watched`, those that early stopping looks at, by its metric and their mean. Writes `soup.json`,
    and the weights to `soup/` where they are better than the best epoch's alone.
    """
    if not watched:
        console.log_info("no soup: it needs a validation part")
        return
    metric, progress = config.early_stopping.metric, checkpoints.progress()
    steps = factory.steps(config, len(progress.classes))
    like = factory.shapes(config, len(progress.classes))

    def score(variables: PyTree) -> dict[str, float]:
        placed = steps.shard_state(variables)
        of_each = [
            metrics.quick(steps.predict(placed, part.images, "none"), part.labels)
            for part in watched
        ]
        return {name: statistics.fmean(f[name] for f in of_each) for name in of_each[0]}

    taken: list[int] = []
    average, figures, single = None, {}, {}
    for step, _ in progress.leaders:
        found = checkpoints.restore_variables(step, like, ema=config.ema > 0)
        tried = _with_one_more(average, jax.device_get(found), len(taken))
        scored = score(tried)
        if not taken:
            single = scored
        elif _better(figures[metric], scored[metric], metric):
            continue
        taken.append(step)
        average, figures = tried, scored
    chosen = _better(figures[metric], single[metric], metric)
    if chosen:
        _save(workdir / FOLDER, progress, average, steps)
    content = {
        "steps": taken,
        "validation": {"best": single, "soup": figures},
        "chosen": chosen,
    }
    atomic_write(workdir / FILE, json.dumps(content, indent=2) + "\n")
    console.log_info(
        f"soup of {len(taken)} of the {len(progress.leaders)} best epochs: validation {metric} "
        f"{figures[metric]:.4f}, of the best alone {single[metric]:.4f}"
        f"; {'the soup' if chosen else 'the best epoch'} is kept"
    )


def is_chosen(workdir: pathlib.Path) -> bool:
    """Whether the run made a soup that is better than its best epoch."""
    path = workdir / FILE
    return path.exists() and read_json(path, "a run's soup", lambda c: bool(c["chosen"]))


def restore(workdir: pathlib.Path, like: PyTree) -> PyTree:
    """The soup's variables, of the shapes and dtypes of `like`; `is_chosen` must hold.

    Raises:
      UserError: they are not whole.
    """
    with Checkpoints(workdir / FOLDER, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(
                f"{workdir / FOLDER}: the soup's weights are missing or broken; expected them, "
                "which the run's own command makes again"
            )
        return checkpoints.restore_variables(checkpoints.latest_step, like)


def _better(one: float, other: float, metric: str) -> bool:
    return one > other if METRICS[metric] else one < other


def _with_one_more(average: PyTree, new: PyTree, count: int) -> PyTree:
    """The mean of `count` trees, of which `average` is the mean, and a further one."""
    if count == 0:
        return new

    def mean(old, new):
        return (old + (new.astype(np.float64) - old) / (count + 1)).astype(np.float32)

    return jax.tree.map(mean, average, new)


def _save(folder: pathlib.Path, progress: RunProgress, variables: PyTree, steps) -> None:
    step = jnp.int32(progress.best_step)
    state = TrainState(step, **variables, opt_state={}, metrics=Metrics.zeros())
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(steps.unreplicate(steps.shard_state(state)), progress)
