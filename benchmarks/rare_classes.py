"""Methods for a class of which few images exist: one class of real cells cut to 13 images.

python -m benchmarks.rare_classes --train=SPEC --test=SPEC --dir=DIR
                                  [--classes=basophil,monocyte] [--kept=13]
                                  [--others=700] [--epochs=5] [--seeds=0,1]
                                  [--methods=plain,balanced sampling,...]
                                  [--out=benchmarks/results] [--config.key=value ...]

Each class of `--classes` in turn keeps `--kept` images and the other classes `--others` in all, in
their usual shares. One network is trained on these for each method and seed, from ImageNet weights,
and its last weights are scored on all images of `--test`. A seed determines which images are kept,
their order and the new head.

The table pools classes and seeds. Its intervals are Clopper-Pearson's, over the pooled answers.
They do not include that another draw of 13 images gives another network; the lowest and the highest
recall of the runs indicate that. The same command resumes after a stop: `--dir` has a file for each
run. The results are written to `OUT/DEVICE/rare_classes_DATE.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from benchmarks import record
from bloodjax import config as config_lib
from bloodjax.checkpoints.state import TrainState
from bloodjax.cli import compilation_cache, console
from bloodjax.config import Config
from bloodjax.data import sources
from bloodjax.data.batches import class_quotas
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write
from bloodjax.metrics.intervals import exact_interval
from bloodjax.training import class_balance, factory
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.loader import TrainLoader
from bloodjax.training.step_config import Phase

_STRONG = {"augment": "d4|choice('microscope', 0.8, 2)|erase(0.5, p=0.25)"}
# Method -> changes of the config. Class weights are 1 where a method does not say otherwise.
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"loss.class_weights": "balanced"},
    "sqrt sampling": {"data.sampling": "sqrt"},
    "balanced sampling": {"data.sampling": "balanced"},
    "logit adjustment": {"loss.logit_adjustment": 1.0},
    "sqrt sampling with strong augmentation": {"data.sampling": "sqrt", **_STRONG},
    "balanced sampling with strong augmentation": {"data.sampling": "balanced", **_STRONG},
}
# Row of the table -> the method whose probabilities are divided by the training shares.
AFTERWARDS = {"plain, adjusted after training": "plain"}


def cut(dataset: Dataset, rare: int, kept: int, others: int, rng: np.random.Generator) -> Dataset:
    """A random part of a dataset in which one class is rare.

    Args:
      dataset: Images of all classes.
      rare: Index of the class that becomes rare.
      kept: Number of images that it keeps.
      others: Number of images of all other classes, which keep their shares among each other.
      rng: Chooses the images.

    Raises:
      UserError: The dataset has too few images.
    """
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    counts[rare] = 0
    quotas = class_quotas(counts, others, 1.0, 0.5)
    quotas[rare] = kept
    chosen = []
    for label, quota in enumerate(quotas.tolist()):
        members = np.flatnonzero(dataset.labels == label)
        if quota > len(members):
            raise UserError(
                f"--kept and --others need {quota} images of {dataset.classes[label]}, but the "
                f"training images have {len(members)}"
            )
        chosen.append(rng.choice(members, quota, replace=False))
    return dataset.take(np.sort(np.concatenate(chosen)))


class Trainings:
    """Trains networks one after another, with the same compiled steps where these do not differ.

    Configs may differ in the seed, in `augment`, in `data.sampling` and in keys of `loss`.
    """

    def __init__(self):
        self._steps: dict[tuple, tuple[JitExecutor | PmapExecutor, Phase]] = {}
        self._variables: dict[int, PyTree] = {}

    def __call__(
        self, config: Config, train: Dataset, test: Dataset
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the test images after the last epoch.

        Args:
          config: Config of the run; only its phase `finetune` is trained.
          train: Training images.
          test: Test images.
        """
        num_classes = len(train.classes)
        config, backbone = factory.pretrained(config)
        if config.seed not in self._variables:
            start = factory.variables(config, num_classes, backbone)
            self._variables[config.seed] = jax.device_get(start)
        # A copy, because the steps may reuse the memory of their state.
        variables = jax.tree.map(np.array, self._variables[config.seed])
        shift = class_balance.logit_shift(config, train.labels, num_classes)
        key = config.augment, shift
        if key not in self._steps:
            executor = factory.executor(config, num_classes, shift)
            phase = factory.phase(
                config,
                "finetune",
                variables=variables,
                num_images=len(train),
                num_classes=num_classes,
            )
            self._steps[key] = executor, phase
        executor, phase = self._steps[key]
        loader = TrainLoader(config, executor, train)
        weights = class_balance.class_weights(config, train.labels, num_classes)
        weights = executor.replicate(weights)
        state = executor.replicate(TrainState.create(variables, phase.tx))
        for epoch in range(config.phases.finetune.epochs):
            with contextlib.closing(loader.epoch(epoch)) as inputs:
                for steps, data, order in inputs:
                    state, _ = executor.train(phase, steps, state, data, order, weights)
        return executor.predict(state.variables, np.asarray(test.images), "none")


def adjusted(
    probabilities: Float[np.ndarray, "n classes"], counts: Int[np.ndarray, " classes"]
) -> Float[np.ndarray, "n classes"]:
    """Probabilities divided by the training shares (Menon et al. 2021, arXiv:2007.07314)."""
    values = probabilities.astype(np.float64) / counts
    return values / values.sum(axis=1, keepdims=True)


def score(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], rare: int
) -> dict[str, Any]:
    """Counts of a run: of the rare class, of all images, and the mean recall."""
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    recalls = [float(correct[labels == label].mean()) for label in np.unique(labels)]
    return {
        "rare": int(np.sum(labels == rare)),
        "found": int(np.sum(correct & (labels == rare))),
        "predicted": int(np.sum(predicted == rare)),
        "n": len(labels),
        "correct": int(correct.sum()),
        "mean_recall": float(np.mean(recalls)),
    }


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one row: proportions over all runs with exact 95 % intervals.

    Args:
      runs: Counts of each run as from `score`, with its class.

    Returns:
      `recall`, `precision` and `accuracy`, each with `value` and `ci95` (None where nothing was
      predicted as the rare class), the lowest and the highest recall of a run, the recall by class,
      and the mean recall over classes.
    """

    def proportion(of: str, among: str) -> dict[str, Any]:
        hits, trials = (sum(run[key] for run in runs) for key in (of, among))
        if not trials:
            return {"value": None, "ci95": None}
        return {"value": hits / trials, "ci95": list(exact_interval(hits, trials))}

    recalls = [run["found"] / run["rare"] for run in runs]
    by_class: dict[str, list[float]] = {}
    for run, recall in zip(runs, recalls, strict=True):
        by_class.setdefault(run["class"], []).append(recall)
    return {
        "recall": proportion("found", "rare"),
        "precision": proportion("found", "predicted"),
        "accuracy": proportion("correct", "n"),
        "recall_of_runs": [min(recalls), max(recalls)],
        "recall_by_class": {name: float(np.mean(values)) for name, values in by_class.items()},
        "mean_recall": float(np.mean([run["mean_recall"] for run in runs])),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    classes = list(next(iter(rows.values()))["recall_by_class"])
    header = ["training", "recall of the rare class", "lowest and highest run", *classes]
    header += ["precision of the rare class", "accuracy", "mean recall"]
    lines = [header, ["---"] * len(header)]
    for name, row in rows.items():
        low, high = row["recall_of_runs"]
        cells = [name, _shown(row["recall"]), f"{low:.2f} to {high:.2f}"]
        cells += [f"{row['recall_by_class'][each]:.2f}" for each in classes]
        cells += [_shown(row["precision"]), _shown(row["accuracy"]), f"{row['mean_recall']:.3f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _shown(proportion: Mapping[str, Any]) -> str:
    if proportion["value"] is None:
        return "-"
    low, high = proportion["ci95"]
    return f"{proportion['value']:.3f} ({low:.3f} to {high:.3f})"


def make_config(
    epochs: int, seed: int, changes: Mapping[str, Any], overrides: Sequence[str]
) -> Config:
    """The config of one run; the user's overrides have precedence."""
    values = {
        "data.train": "in memory",
        "data.image_size": 64,
        "batch_size": 32,
        "loss.class_weights": "none",
        "phases.finetune.epochs": epochs,
        "seed": seed,
        **changes,
    }
    own = [f"{key}={value}" for key, value in values.items()]
    return config_lib.load("efficientnet_lite0", [*own, *overrides])


def measure(chosen: argparse.Namespace, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Trains the runs that have no file yet; returns the counts of every run and row."""
    for method in chosen.methods:
        if method not in METHODS:
            raise UserError(f"--methods={method}: expected names of {', '.join(METHODS)}")
    size = make_config(chosen.epochs, 0, {}, overrides).data.image_size
    train = sources.load(chosen.train, size)
    test = sources.load(chosen.test, size, class_names=train.classes)
    for name in chosen.classes:
        if name not in train.classes:
            raise UserError(f"--classes={name}: expected names of {', '.join(train.classes)}")
    settings = {key: getattr(chosen, key) for key in ("train", "test", "kept", "others", "epochs")}
    settings["overrides"] = list(overrides)
    trainings, found = Trainings(), []
    for seed in chosen.seeds:
        for name in chosen.classes:
            rare = train.classes.index(name)
            rng = np.random.default_rng((seed, rare))
            part = cut(train, rare, chosen.kept, chosen.others, rng)
            for method in chosen.methods:
                path = chosen.dir / f"{seed}-{name}-{method.replace(' ', '_')}.json"
                if not path.exists():
                    config = make_config(chosen.epochs, seed, METHODS[method], overrides)
                    rows = _train_and_score(trainings, config, part, test, method, rare)
                    runs = [{"class": name, "seed": seed, **row} for row in rows]
                    atomic_write(path, json.dumps({"settings": settings, "runs": runs}))
                content = json.loads(path.read_text("utf-8"))
                if content["settings"] != settings:
                    raise UserError(f"{path} is of other settings: expected another --dir")
                found += content["runs"]
    return found


def _train_and_score(
    trainings: Trainings, config: Config, train: Dataset, test: Dataset, method: str, rare: int
) -> list[dict[str, Any]]:
    """Counts of the rows of one run, which are logged."""
    start = time.monotonic()
    answers = {method: trainings(config, train, test)}
    counts = np.bincount(train.labels, minlength=len(train.classes))
    for row, of in AFTERWARDS.items():
        if of == method:
            answers[row] = adjusted(answers[method], counts)
    rows = [{"row": row, **score(found, test.labels, rare)} for row, found in answers.items()]
    for row in rows:
        console.log_info(
            f"{train.classes[rare]}, seed {config.seed}, {row['row']}: found {row['found']} of "
            f"{row['rare']}, accuracy {row['correct'] / row['n']:.3f}, "
            f"{time.monotonic() - start:.0f} s"
        )
    return rows


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rare_classes", description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--classes", default="basophil,monocyte")
    parser.add_argument("--kept", type=int, default=13)
    parser.add_argument("--others", type=int, default=700)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen, overrides = record.parse_with_overrides(parser)
    chosen.classes = chosen.classes.split(",")
    chosen.methods = chosen.methods.split(",")
    return chosen, overrides


def main() -> None:
    """Runs the command."""
    chosen, overrides = _arguments()
    console.show_lines()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    compilation_cache.keep(chosen.dir)
    try:
        runs = measure(chosen, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    names = list(dict.fromkeys(run["row"] for run in runs))
    rows = {name: pooled([run for run in runs if run["row"] == name]) for name in names}
    device = record.device_name(jax.default_backend(), jax.devices()[0].device_kind)
    about = {
        key: getattr(chosen, key)
        for key in ("classes", "kept", "others", "epochs", "seeds", "methods")
    }
    content = {**about, "overrides": overrides, "rows": rows, "runs": runs}
    path = record.write(chosen.out, device, content, prefix="rare_classes_")
    print(f"{table(rows)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
