"""Greedy soup: the average of the weights of a run's best epochs, if it beats the best epoch.

The method is the greedy soup of Wortsman et al., "Model soups", 2022, arXiv:2203.05482, applied to
epochs of one run instead of several runs. BatchNorm's running averages are averaged too.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax import metrics
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import METRICS
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json
from bloodjax.training import factory
from bloodjax.training.workdir import write_variables

FILE = "soup.json"
FOLDER = "soup"


def make(
    config: Config,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    datasets: Sequence[Dataset],
) -> None:
    """Makes the soup of a finished run from its `config.soup` best epochs.

    Epochs are tried from the best to the worst. An epoch is added unless the average becomes worse,
    by early stopping's metric averaged over `datasets`. Writes `soup.json`, and the weights to
    `soup/` if they are better than the best epoch's.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      checkpoints: Checkpoints of the run.
      datasets: The splits that early stopping monitors; if empty, no soup is made.
    """
    if not datasets:
        console.log_info("no soup: it needs a validation split")
        return
    metric, progress = config.early_stopping.metric, checkpoints.progress()
    if not progress.top_k:
        console.log_info("no soup: the checkpoints of its epochs are lost")
        content = {"steps": [], "validation": {}, "chosen": False}
        atomic_write(workdir / FILE, json.dumps(content, indent=2) + "\n")
        return
    executor = factory.executor(config, len(progress.classes))
    like = factory.shapes(config, len(progress.classes))

    def score(variables: PyTree) -> dict[str, float]:
        sharded = executor.shard_state(variables)
        each = [
            metrics.quick(executor.predict(sharded, dataset.images, "none"), dataset.labels)
            for dataset in datasets
        ]
        return {name: statistics.fmean(scores[name] for scores in each) for name in each[0]}

    added: list[int] = []
    average, scores, single = None, {}, {}
    for step, _ in progress.top_k:
        variables = checkpoints.restore_variables(step, like, ema=config.ema > 0)
        candidate = _add_to_mean(average, jax.device_get(variables), len(added))
        candidate_scores = score(candidate)
        if not added:
            single = candidate_scores
        elif _better(scores[metric], candidate_scores[metric], metric):
            continue
        added.append(step)
        average, scores = candidate, candidate_scores
    chosen = _better(scores[metric], single[metric], metric)
    if chosen:
        write_variables(workdir / FOLDER, progress, average, executor)
    content = {
        "steps": added,
        "validation": {"best": single, "soup": scores},
        "chosen": chosen,
    }
    atomic_write(workdir / FILE, json.dumps(content, indent=2) + "\n")
    console.log_info(
        f"soup of {len(added)} of the {len(progress.top_k)} best epochs: validation {metric} "
        f"{scores[metric]:.4f}, of the best epoch {single[metric]:.4f}"
        f"; the run uses {'the soup' if chosen else 'the best epoch'}"
    )


def is_chosen(workdir: pathlib.Path) -> bool:
    """Whether the run has a soup that is better than its best epoch."""
    path = workdir / FILE
    return path.exists() and read_json(path, "a run's soup", lambda c: bool(c["chosen"]))


def restore(workdir: pathlib.Path, like: PyTree) -> PyTree:
    """Restores the soup's variables; `is_chosen` must be true.

    Args:
      workdir: Folder of the run.
      like: Variables of the same shapes and dtypes.

    Raises:
      UserError: The soup's weights are missing or damaged.
    """
    with Checkpoints(workdir / FOLDER, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(
                f"{workdir / FOLDER}: the soup's weights are missing or damaged; run the training "
                "command again to make them"
            )
        return checkpoints.restore_variables(checkpoints.latest_step, like)


def _better(one: float, other: float, metric: str) -> bool:
    return one > other if METRICS[metric] else one < other


def _add_to_mean(average: PyTree, new: PyTree, count: int) -> PyTree:
    """The mean of `count` trees with the mean `average`, and of the tree `new`."""
    if count == 0:
        return new

    def mean(old, new):
        return (old + (new.astype(np.float64) - old) / (count + 1)).astype(np.float32)

    return jax.tree.map(mean, average, new)
