"""K-fold cross-validation: k runs that validate on different parts of train, and their ensemble.

With `config.folds` = "leave-one-group-out" each group, such as a patient, is a fold.

WORKDIR/fold0 ... fold{k-1}   the runs, each with a workdir of its own
WORKDIR/evaluate/out_of_fold  each image, predicted by the one run that validated on it
WORKDIR/evaluate/test         the ensemble on the test split, which no run trains on
WORKDIR/report                the report on both
"""

from __future__ import annotations

import pathlib
import shutil

import numpy as np

from bloodjax import config as config_lib
from bloodjax import distributed, run, tracking
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import fingerprint
from bloodjax.data import names as names_lib
from bloodjax.data import splits as splits_lib
from bloodjax.data.batches import steps_per_epoch
from bloodjax.data.dataset import Dataset
from bloodjax.data.options import MULTI_LABEL
from bloodjax.distributed.preemption import graceful_shutdown
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble, evaluator, label_review, run_report
from bloodjax.evaluation import results as results_lib
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.training import factory, input_pipeline, saved_splits
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.workdir import CONFIG_FILE, check_apart, lock_workdir, open_config

_SPLITS_FILE = "splits.json"
OUT_OF_FOLD = "out_of_fold"
# Splits whose images the folds share.
_POOL = ("train", "validation")


def train(config: Config, workdir: pathlib.Path) -> dict[str, dict]:
    """Trains the folds one after another, from the first unfinished one on; then reports.

    Args:
      config: Config of the folds. `config.folds` is their number or kind.
      workdir: Folder of the folds; it is created if missing.

    Returns:
      The content of `metrics.json` of the ensemble on "test", if there is a test split, and of
      "out_of_fold".

    Raises:
      UserError: The user can correct the cause, such as too few images of a class.
      Stopped: SIGINT or SIGTERM came. The same command resumes.
    """
    tracking.check_installed(config.trackers)
    check_apart(config, workdir)
    single = distributed.count() == 1
    with (
        lock_workdir(workdir),
        graceful_shutdown(config.grace_seconds, single_process=single) as stop,
        stop.interruptible("stopped between the folds; the same command resumes"),
    ):
        stored = open_config(config, workdir)
        config = stored or config
        distributed.barrier()  # all processes have looked; now the primary one may write
        if stored is None and distributed.is_primary():
            factory.pretrained(config)  # missing weights show before anything is written
            _draw_folds(config, workdir)
        distributed.barrier()
        atomic_write(workdir / CONFIG_FILE, config_lib.to_json(config))
        distributed.barrier()  # all processes read the number of folds from it
        folders = ensemble.fold_folders(workdir)
        for fold, folder in enumerate(folders):
            finished = (folder / "report" / "index.html").exists()  # a run writes its report last
            if distributed.exchange(finished)[0]:
                if distributed.is_primary():  # the images may be elsewhere now
                    stored = open_config(_fold_config(config, folder), folder)
                    atomic_write(folder / CONFIG_FILE, config_lib.to_json(stored))
                continue
            which = f"fold {fold + 1} of {len(folders)}"
            console.log_info(which)
            try:
                run.train(_fold_config(config, folder), folder)
            except UserError as error:
                raise UserError(f"{which}: {error}") from error
        # Read again only now, so that the folds have all memory.
        splits = input_pipeline.prepare_splits(config, workdir, resumes=True)
        return _finish(config, workdir, splits)


def _fold_config(config: Config, folder: pathlib.Path) -> Config:
    content = config.to_dict()
    name = config.tracking.run_name or folder.parent.resolve().name
    changed = {
        "folds": 0,
        # `splits.json` lists the validation images; "auto" makes sure that the run has some.
        "data": content["data"] | {"validation": "auto"},
        "tracking": content["tracking"] | {"run_name": f"{name}/{folder.name}"},
    }
    return config_lib.validate(content | changed)


def _draw_folds(config: Config, workdir: pathlib.Path) -> None:
    """Draws the folds, and gives each a workdir like that of a run that has drawn its splits."""
    splits = input_pipeline.prepare_splits(config, workdir, resumes=False)
    saved = splits_lib.load(workdir / _SPLITS_FILE)
    pool = _pool(splits)
    if pool.is_multi_label:  # Its config is refused, as it has folds.
        config_lib.with_values(config, {"data.task": MULTI_LABEL})
    fold_of = _assign_folds(config, pool, workdir)
    _check_folds(config, pool, fold_of)
    test = {"test": saved["parts"]["test"]} if "test" in saved["parts"] else {}
    saved["sources"] = {split: saved["sources"][split] for split in ("train", *test)}
    validation = {"validation": saved["sources"]["train"]}
    hashes = np.concatenate(
        [
            fingerprint.from_text(saved["pixels"][name])
            for name, _ in splits.items()
            if name in _POOL
        ]
    )
    kept = {name: text for name, text in saved["pixels"].items() if name in test}
    kept_groups = {name: text for name, text in saved["groups"].items() if name in test}
    names, groups = np.array(pool.names), np.array(pool.groups, object)
    for fold in range(fold_of.max() + 1):
        folder = workdir / f"fold{fold}"
        make_folder(folder)
        held_out = fold_of == fold
        own = {"train": names[~held_out].tolist(), "validation": names[held_out].tolist(), **test}
        pixels = {"train": hashes[~held_out], "validation": hashes[held_out]}
        content = {
            **saved,
            "sources": saved["sources"] | validation,
            "pixels": {name: fingerprint.to_text(part) for name, part in pixels.items()} | kept,
            "groups": {
                "train": splits_lib.hash_groups(groups[~held_out].tolist()),
                "validation": splits_lib.hash_groups(groups[held_out].tolist()),
                **kept_groups,
            },
            "parts": own,
        }
        splits_lib.write(folder / _SPLITS_FILE, content)
        shutil.copytree(workdir / "audit", folder / "audit", dirs_exist_ok=True)
        # Last, because a run with a config resumes from its splits.
        atomic_write(folder / CONFIG_FILE, config_lib.to_json(_fold_config(config, folder)))
    content = {
        **saved,
        "pixels": {"train": fingerprint.to_text(hashes), **kept},
        "groups": {"train": splits_lib.hash_groups(pool.groups), **kept_groups},
        "parts": {"train": names.tolist(), **test},
    }
    splits_lib.write(workdir / _SPLITS_FILE, content)
    # Folds are counted by their configs; a draw that was broken off may have made more.
    (workdir / f"fold{fold_of.max() + 1}" / CONFIG_FILE).unlink(missing_ok=True)


def _pool(splits: Splits) -> Dataset:
    """The images that the folds share: train and validation, which have the same source."""
    if splits.validation is None:
        return splits.train
    return splits.train.concatenate(splits.validation)


def _assign_folds(config: Config, pool: Dataset, workdir: pathlib.Path) -> np.ndarray:
    """The fold of each image of `pool`, int [n]. Duplicates and groups stay in one fold.

    Raises:
      UserError: A fold would be empty, or leave a class without images to train on.
    """
    findings = read_json(workdir / "audit" / "audit.json", "an audit", dict)
    groups = splits_lib.merge_groups(pool.groups, _duplicates(findings, pool))
    if config.folds == config_lib.LEAVE_ONE_GROUP_OUT:
        return _fold_by_group(config, pool, groups)
    fractions = {f"fold{i}": 1 / config.folds for i in range(config.folds)}
    drawn = splits_lib.split(pool.labels, fractions, groups, config.seed)
    fold_of = np.empty(len(pool), int)
    for fold, index in enumerate(drawn.values()):
        fold_of[index] = fold
        rest = np.delete(pool.labels, index)
        missing = set(range(len(pool.classes))) - set(rest.tolist())
        if missing or not len(index):
            what = f"class {pool.classes[min(missing)]}" if missing else "data"
            raise UserError(
                f"config.folds is {config.folds}, but the {what} of {config.data.train} cannot be "
                "split into as many: expected images of each class, no duplicates or of one group, "
                "in at least two folds"
            )
    return fold_of


def _check_folds(config: Config, pool: Dataset, fold_of: np.ndarray) -> None:
    """Checks what would end the run of a fold, after those of the folds before it.

    Raises:
      UserError: A fold leaves fewer images than a batch has; or early stopping monitors the area
        under the ROC curve, which images of one class have not.
    """
    sizes = np.bincount(fold_of)
    steps_per_epoch(int(len(pool) - sizes.max()), config.batch_size)
    if config.early_stopping.metric != "auc":
        return
    for fold in range(len(sizes)):
        if len(np.unique(pool.labels[fold_of == fold])) < 2:
            raise UserError(
                "config.early_stopping.metric is 'auc', expected another, such as loss: all images "
                f"of fold {fold + 1} are of one class"
            )


def _fold_by_group(config: Config, pool: Dataset, merged: np.ndarray) -> np.ndarray:
    """The fold of each image, one for each group, in the order of their names.

    Groups that share an image, by the audit, are left out together.

    Args:
      config: Config of the folds.
      pool: The images.
      merged: Number of each image's group, from `splits.merge_groups`.

    Raises:
      UserError: An image has no group, there is one group only, or all images of a class are of
        one group.
    """
    what = f"config.folds is {config.folds}, but"
    spec = config.data.train
    if "" in pool.groups:
        without = pool.groups.count("")
        raise UserError(
            f"{what} {console.counted(without, 'image')} of {spec} (first "
            f"{pool.names[pool.groups.index('')]}) {'has' if without == 1 else 'have'} no group; "
            "expected a group for each image, such as its patient, from folders or a table"
        )
    names_of: dict[int, list[str]] = {}
    for number, group in sorted({*zip(merged.tolist(), pool.groups, strict=True)}):
        names_of.setdefault(number, []).append(group)
    if len(names_of) < 2:
        raise UserError(f"{what} all images of {spec} are of one group; expected at least two")
    joined = {number: names_lib.in_order(own) for number, own in names_of.items()}
    place = {group: i for i, group in enumerate(names_lib.in_order(set(pool.groups)))}
    order = sorted(joined, key=lambda number: place[joined[number][0]])
    fold_of = np.empty(len(pool), int)
    for fold, number in enumerate(order):
        fold_of[merged == number] = fold
    for label, name in enumerate(pool.classes):
        folds = np.unique(fold_of[pool.labels == label])
        if len(folds) == 1:
            raise UserError(
                f"{what} all images of class {name} of {spec} are of the group "
                f"{' and '.join(joined[order[folds[0]]])}; expected each class in two or more"
            )
    console.log_info(f"leave-one-group-out: {console.counted(len(order), 'fold')}")
    for own in joined.values():
        if len(own) > 1:
            console.log_info(f"the groups {', '.join(own)} share images, and are left out together")
    return fold_of


def _duplicates(findings: dict, pool: Dataset) -> list[list[int]]:
    """The audit's groups of duplicates, as indices into `pool`.

    If several sources were audited, names of train's images have the prefix "train:".
    """
    position = {name: i for i, name in enumerate(pool.names)}
    position |= {f"train:{name}": i for i, name in enumerate(pool.names)}
    found = findings["exact_duplicates"] + findings["near_duplicates"]
    return [[position[name] for name in group if name in position] for group in found if group]


def _finish(config: Config, workdir: pathlib.Path, splits: Splits) -> dict[str, dict]:
    """Evaluates the folds together and writes the report."""
    train = splits.train
    evaluator.write_baseline(workdir, train)
    distributed.barrier()
    model = ensemble.load(workdir)
    results, headline, known = {}, None, {}
    if splits.test is not None:
        out = workdir / "evaluate" / "test"
        source = results_lib.of_run("test", splits.test.reading.spec)
        results["test"], probabilities = evaluator.evaluate(
            model, splits.test, out, tta=None, source=source
        )
        headline, known["test"] = run_report.Headline(splits.test, probabilities), probabilities
    results[OUT_OF_FOLD], probabilities = out_of_fold(model, train, workdir)
    known["train"] = probabilities
    headline = headline or run_report.Headline(train, probabilities)
    for name, result in results.items():
        for line in evaluator.lines(name, result):
            console.log_info(line)
    review = None
    if config.evaluation.label_review:
        review = label_review.review(model, workdir, splits, known)
    run_report.write(config, workdir, splits, model, results, headline, review)
    return results


def out_of_fold(
    model: Ensemble, train: Dataset, workdir: pathlib.Path
) -> tuple[dict[str, object], np.ndarray]:
    """Evaluates each image with the one member that validated on it.

    Writes `evaluate/out_of_fold` in `workdir`. Each member's best epoch was selected on these
    images, so their metrics are slightly optimistic; those on test are not.

    Args:
      model: Ensemble of the folds.
      train: Images that the folds share.
      workdir: Folder of the folds.

    Returns:
      The content of `metrics.json`, with the accuracy of colour histograms that were also fitted
      without the image, and the probabilities [n, classes].
    """
    probabilities = np.empty((len(train), len(train.classes)), np.float32)
    baseline = np.empty(len(train), int)
    fold_of = np.empty(len(train), int)
    for fold, (folder, member) in enumerate(model.members.items()):
        names = splits_lib.load(folder / _SPLITS_FILE)["parts"]["validation"]
        index = saved_splits.positions(train.reading.spec, train, names)
        images = train.take(index).images
        probabilities[index] = member.predict(images)
        baseline[index] = member.baseline.predict(images).argmax(axis=1)
        fold_of[index] = fold
    result = evaluator.score(probabilities, train, model.config)
    result["source"] = results_lib.of_run(OUT_OF_FOLD, train.reading.spec)
    result |= {"step": None, "tta": model.tta}
    result["baseline"] = {"accuracy": float(np.mean(baseline == train.labels))}
    correct = probabilities.argmax(axis=1) == train.labels
    groups = np.array(train.groups, object)
    by_group = config_lib.load_json(workdir / CONFIG_FILE).folds == config_lib.LEAVE_ONE_GROUP_OUT
    result["folds"] = [
        {
            "n": int(np.sum(fold_of == fold)),
            "accuracy": float(correct[fold_of == fold].mean()),
            **({"groups": sorted({*groups[fold_of == fold]})} if by_group else {}),
        }
        for fold in range(len(model.members))
    ]
    out = workdir / "evaluate" / OUT_OF_FOLD
    make_folder(out)
    evaluator.write(out, result, train, probabilities)
    return result, probabilities
