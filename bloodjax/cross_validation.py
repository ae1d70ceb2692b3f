"""K-fold training: k runs, each with another part of train for validation, and their ensemble.

WORKDIR/fold0 ... fold{k-1}   the runs, each a workdir of its own
WORKDIR/evaluate              out_of_fold: each image judged by the one run that did not see
                              it; test: the ensemble on the part kept back from all runs
WORKDIR/report                both
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np

from bloodjax import config as config_lib
from bloodjax import distributed, run
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import splits
from bloodjax.data.dataset import Dataset
from bloodjax.distributed.preemption import graceful_shutdown
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble, evaluator, histogram_baseline
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.training import input_pipeline
from bloodjax.training.input_pipeline import Parts
from bloodjax.training.workdir import BASELINE_FILE, CONFIG_FILE, lock_workdir, open_config

_SPLITS_FILE = "splits.json"
OUT_OF_FOLD = "out_of_fold"


def train(config: Config, workdir: pathlib.Path) -> dict[str, dict]:
    """Trains the folds one after another, or goes on with the first unfinished one; then reports.

    Returns:
      The content of `metrics.json` of the ensemble on "test", where there is a test part, and of
      "out_of_fold".

    Raises:
      UserError: anything that the user can put right, too few images of a class among it.
      Stopped: SIGINT or SIGTERM came; the same command goes on.
    """
    message = "stopped between the folds; the same command goes on"
    with (
        lock_workdir(workdir),
        graceful_shutdown(config.grace_seconds, alone=distributed.count() == 1) as stop,
        stop.interruptible(message),
    ):
        stored = open_config(config, workdir)
        config = stored or config
        distributed.barrier()  # all have looked; only now may the primary process write
        if stored is None and distributed.is_primary():
            _share_out(config, workdir)
        distributed.barrier()
        atomic_write(workdir / CONFIG_FILE, config_lib.to_json(config))
        distributed.barrier()  # it says how many folds there are
        for fold, folder in enumerate(ensemble.fold_folders(workdir)):
            report = (folder / "report" / "index.html").exists()  # the last thing that a run writes
            if distributed.exchange(report)[0]:
                continue
            console.log_info(f"fold {fold + 1} of {config.folds}")
            run.train(_fold_config(config), folder)
        # Read anew, so that the folds had the memory for themselves.
        return _finish(config, workdir, input_pipeline.prepare(config, workdir, resumes=True))


def _fold_config(config: Config) -> Config:
    # `splits.json` says which images validate; "auto" says that there are some.
    content = config.to_dict()
    return config_lib.check(
        content | {"folds": 0, "data": content["data"] | {"validation": "auto"}}
    )


def _share_out(config: Config, workdir: pathlib.Path) -> None:
    """Draws the folds, and leaves each a workdir as of a run that has just drawn its parts."""
    prepared = input_pipeline.prepare(config, workdir, resumes=False)
    saved = splits.read(workdir / _SPLITS_FILE)
    pool = _joined(prepared)
    fold_of = _draw(config, pool, workdir)
    test = {"test": saved["parts"]["test"]} if "test" in saved["parts"] else {}
    saved["sources"] = {part: saved["sources"][part] for part in ("train", *test)}
    validation = {"validation": saved["sources"]["train"]}
    names = np.array(pool.names)
    for fold in range(config.folds):
        folder = workdir / f"fold{fold}"
        make_folder(folder)
        held_out = fold_of == fold
        own = {"train": names[~held_out].tolist(), "validation": names[held_out].tolist(), **test}
        content = {**saved, "sources": saved["sources"] | validation, "parts": own}
        _write(folder / _SPLITS_FILE, content)
        shutil.copytree(workdir / "audit", folder / "audit", dirs_exist_ok=True)
        # Last: with a config the run goes on from these parts.
        atomic_write(folder / CONFIG_FILE, config_lib.to_json(_fold_config(config)))
    _write(workdir / _SPLITS_FILE, {**saved, "parts": {"train": names.tolist(), **test}})


def _write(path: pathlib.Path, content: dict[str, object]) -> None:
    atomic_write(path, json.dumps(content, indent=1))


def _joined(prepared: Parts) -> Dataset:
    """Train and validation, which are of one source, as one."""
    if prepared.validation is None:
        return prepared.train
    return prepared.train.joined(prepared.validation)


def _draw(config: Config, pool: Dataset, workdir: pathlib.Path) -> np.ndarray:
    """The fold of each image of `pool`, int [n]; duplicates and groups stay in one.

    Raises:
      UserError: a fold would leave a class without images to train on, or be empty.
    """
    findings = read_json(workdir / "audit" / "audit.json", "an audit", dict)
    groups = splits.merge_groups(pool.groups, _duplicates(findings, pool))
    shares = {f"fold{i}": 1 / config.folds for i in range(config.folds)}
    drawn = splits.split(pool.labels, shares, groups, config.seed)
    fold_of = np.empty(len(pool), int)
    for fold, index in enumerate(drawn.values()):
        fold_of[index] = fold
        left = np.delete(pool.labels, index)
        missing = set(range(len(pool.classes))) - set(left.tolist())
        if missing or not len(index):
            what = f"class {pool.classes[min(missing)]}" if missing else "data"
            raise UserError(
                f"config.folds is {config.folds}, but the {what} of {config.data.train} cannot be "
                "shared out: expected images of each class, no duplicates or of one group, in at "
                "least two folds"
            )
    return fold_of


def _duplicates(findings: dict, pool: Dataset) -> list[list[int]]:
    """The audit's groups of duplicates, as indices into `pool`.

    Where several sources were audited, the names of train's have "train:" in front.
    """
    position = {name: i for i, name in enumerate(pool.names)}
    position |= {f"train:{name}": i for i, name in enumerate(pool.names)}
    found = findings["exact_duplicates"] + findings["near_duplicates"]
    return [[position[name] for name in group if name in position] for group in found if group]


def _finish(config: Config, workdir: pathlib.Path, pooled: Parts) -> dict[str, dict]:
    """Evaluates and reports what the folds give together."""
    train = pooled.train
    baseline = histogram_baseline.HistogramBaseline.fit(
        train.images, train.labels, len(train.classes)
    )
    atomic_write(workdir / BASELINE_FILE, json.dumps(baseline.to_dict()))
    distributed.barrier()
    model = ensemble.load(workdir)
    results, mistakes = {}, ()
    if pooled.test is not None:
        out = workdir / "evaluate" / "test"
        results["test"], probabilities = evaluator.evaluate(model, pooled.test, out, tta=None)
        mistakes = evaluator.confident_mistakes(model, pooled.test, probabilities)
    results[OUT_OF_FOLD], probabilities = out_of_fold(model, train, workdir)
    if pooled.test is None:
        mistakes = evaluator.confident_mistakes(model, train, probabilities)
    for name, result in results.items():
        console.log_info(evaluator.summary(name, result))
    evaluator.write_report(config, workdir, pooled, model, results, mistakes)
    return results


def out_of_fold(
    model: Ensemble, train: Dataset, workdir: pathlib.Path
) -> tuple[dict[str, object], np.ndarray]:
    """Judges each image by the one member that had it in its validation part.

    Writes `evaluate/out_of_fold` in `workdir`. The members stopped training where they were best
    on these images, so that the figures may be a little too good; those on test are not.

    Args:
      model: the ensemble of the folds.
      train: the images that the folds share.
      workdir: the folder that the folds lie in.

    Returns:
      The content of `metrics.json`, with the share of the colour histogram that was also fitted
      without the image, and the probabilities [n, classes].
    """
    position = {name: i for i, name in enumerate(train.names)}
    probabilities = np.empty((len(train), len(train.classes)), np.float32)
    guesses = np.empty(len(train), int)
    fold_of = np.empty(len(train), int)
    for fold, (folder, member) in enumerate(model.members.items()):
        names = splits.read(folder / _SPLITS_FILE)["parts"]["validation"]
        index = np.array([position[name] for name in names], int)
        judged = train.take(index).images
        probabilities[index] = member.predict(judged)
        guesses[index] = member.baseline.predict(judged).argmax(axis=1)
        fold_of[index] = fold
    result = evaluator.score(probabilities, train, model.config)
    result |= {"step": None, "tta": model.tta}
    result["baseline"] = {"accuracy": float(np.mean(guesses == train.labels))}
    right = probabilities.argmax(axis=1) == train.labels
    result["folds"] = [
        {"n": int(np.sum(fold_of == fold)), "accuracy": float(right[fold_of == fold].mean())}
        for fold in range(len(model.members))
    ]
    out = workdir / "evaluate" / OUT_OF_FOLD
    make_folder(out)
    evaluator.write(out, result, train, probabilities)
    return result, probabilities
