"""Scores trained runs on a labelled source: `bloodjax.evaluate`, and the command of that name."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from bloodjax import config as config_lib
from bloodjax.augment import views
from bloodjax.augment.tta import METHODS, SELECTED
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.corruptions import registry
from bloodjax.data import spec, statement
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import columns as columns_lib
from bloodjax.data.formats import layout as layout_lib
from bloodjax.errors import UserError
from bloodjax.evaluation import (
    ensemble,
    evaluator,
    multi_label,
    results,
    robustness,
    site,
    uncertainty,
)
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import make_folder
from bloodjax.training import saved_splits


def evaluate_runs(
    workdirs: Sequence[pathlib.Path],
    data: str,
    split: str | None,
    tta: str | None,
    out: pathlib.Path | None,
    *,
    tta_select: str = "none",
    calibrate: bool = False,
    target_error: float | None = None,
    corruptions: str | None = None,
    bad_images: Literal["fail", "skip"] | None = None,
    layout: str | None = None,
    classes: str | Sequence[str] | None = None,
    columns: str | None = None,
    images: str | None = None,
) -> dict:
    """Scores a run, or an ensemble of runs, and writes the files of `evaluator.evaluate`.

    Results of another source are never replaced (`results.folder`). Images that a run was trained
    on are recognised by their pixels in any file. The result is then that of the others, and "all"
    has the metrics of all images, which are written to the folder `all` too.

    See `bloodjax.evaluate` for the arguments, the result and the errors.
    """
    names = {} if corruptions is None else registry.parse(corruptions, "--corruptions")
    _check_target(target_error, calibrate)
    if tta_select not in ("none", *METHODS):
        raise UserError(f"--tta_select={tta_select}: expected none, {' or '.join(METHODS)}")
    if tta:
        views.check(tta, "--tta", (SELECTED,))
    spec.check_images([data], images)
    model = ensemble.load(workdirs)
    if classes is not None:
        model.restrict(site.parse_classes(classes, model.classes, "--classes"))
    if names:
        multi_label.refuse(model.config, "--corruptions")
    if tta_select != "none":
        multi_label.refuse(model.config, "--tta_select")
        _select(model, workdirs, tta, tta_select)
        tta = SELECTED
    model.check_tta(tta)
    if calibrate:
        _calibrate(model, workdirs, target_error)
    if remark := uncertainty.remark(model, workdirs):
        console.log_info(remark)
    config = config_lib.with_reading(
        model.config,
        bad_images=bad_images,
        columns=columns_lib.check_flag(columns),
        images=images,
    )
    if layout is not None:
        layout_lib.check(layout, "--layout")
    splits_file = workdirs[0] / saved_splits.SPLITS_FILE

    def read(config: Config, fit: str) -> tuple[str, Dataset]:
        return saved_splits.select(
            config, splits_file, model.classes, data, split, layout, fit, images
        )

    name, dataset = read(config, model.fit)
    for line in statement.lines({name: dataset}):
        console.log_info(line)
    _check_possible(model, dataset, "" if classes is None else "--classes: ")
    is_own = name in saved_splits.SPLITS
    seen = trained_groups = np.zeros(len(dataset), bool)
    if name == "train":
        apart = workdirs[0] / "evaluate/out_of_fold"
        told = f"; see {apart} for runs that were not trained on them" if apart.is_dir() else ""
        console.log_info(f"train: these images were trained on, so the figures are too good{told}")
    else:
        read_with = config_lib.with_reading(config, fit=None if is_own else model.fit)
        seen = _trained_on(model, workdirs[0], dataset, read_with, read)
        trained_groups = _of_trained_groups(model, workdirs[0], dataset)
        if not is_own:  # this file may name groups that the run's own source does not
            trained_groups = trained_groups | _in_groups_of(dataset, seen)
    if len(workdirs) > 1:
        name = f"{name}-ensemble"
    possible = model.possible_classes if len(model.possible_classes) < len(model.classes) else ()
    if possible:
        name = f"{name}-{len(possible)}-classes"
    source = (results.of_run if is_own else results.of_data)(name, data, possible)
    if out is not None or len(workdirs) > 1:
        source = results.by_runs(source, workdirs)
    out = results.folder(out, workdirs[0] / "evaluate", name, source)
    everything, title, unseen_groups = dataset, name, trained_groups
    # A run's own split is scored as the run did it: with clean=report it may have such images.
    is_scored_apart = seen.any() and not seen.all() and not (is_own and len(workdirs) == 1)
    if seen.any():
        source["trained_on"] = int(seen.sum())
        console.log_info(
            f"{name}: {seen.sum():,} of {console.counted(len(seen), 'image')} were trained on, as "
            "their pixels show" + ("; the others are scored alone" if is_scored_apart else "")
        )
    if is_scored_apart:
        dataset, unseen_groups = dataset.take(~seen), trained_groups[~seen]
        title = f"{name}, without the images trained on"
    scored = {"tta": tta, "source": source}
    result, _ = evaluator.evaluate(model, dataset, out, trained_groups=unseen_groups, **scored)
    for member in result.get("members", ()):
        console.log_info(
            f"{member['workdir']} ({member['network']}): accuracy {member['accuracy']:.4f}, "
            f"loss {member['loss']:.4f}"
        )
    for line in evaluator.lines(title, result):
        console.log_info(line)
    if dataset is not everything:
        both, _ = evaluator.evaluate(
            model, everything, out / "all", trained_groups=trained_groups, **scored
        )
        console.log_info(evaluator.summary(f"{name}, all", both))
        result["all"] = both
    else:
        results.remove_parts(out, *(f"all/{file}" for file in evaluator.FILES))
    if names:
        result["corruptions"] = robustness.benchmark(model, dataset, out, names=names, tta=tta)
        console.log_info(robustness.summary(result["corruptions"]))
    else:
        results.remove_parts(out, *robustness.FILES)
    console.log_info(f"written to {out}")
    return result


def _check_possible(model: Classifier | Ensemble, dataset: Dataset, where: str) -> None:
    """Refuses images of a class that cannot occur at the site.

    Args:
      model: The run, or the ensemble.
      dataset: The labelled images.
      where: What says which classes can occur, for the error; "" for the run's `site.json`.

    Raises:
      UserError: There are such images.
    """
    for name, n in zip(model.classes, dataset.class_counts.tolist(), strict=True):
        if n and name not in model.possible_classes:
            listed = ", ".join(model.possible_classes)
            hint = "" if where else f" of the run's {site.FILE}, or others in --classes"
            raise UserError(
                f"{where}{console.counted(n, 'image')} of {dataset.reading.spec} labelled {name}; "
                f"expected only the classes {listed}{hint}"
            )


def _trained_on(
    model: Classifier | Ensemble,
    workdir: pathlib.Path,
    dataset: Dataset,
    config: Config,
    read: Callable[[Config, str], tuple[str, Dataset]],
) -> Bool[np.ndarray, " n"]:
    """Which images the run in `workdir`, or a member of the ensemble, was trained on.

    Args:
      model: The run, or the ensemble.
      workdir: Folder of the run.
      dataset: The images.
      config: Config that they were read with.
      read: Reads them with another config and `data.fit`.
    """

    def read_again(member: Config) -> Dataset:
        """The same images, as a member reads them."""
        content = config.to_dict()
        own = {key: member.data[key] for key in ("image_size", "bits", "scale", "fit")}
        changed = config_lib.validate({**content, "data": {**content["data"], **own}})
        return read(changed, member.data.fit)[1]

    members = _members(model, workdir)
    runs = {folder: member.config for folder, member in members.items()}
    mask, unknown = saved_splits.trained_on(runs, model.classes, dataset, config, read_again)
    for folder in unknown:
        console.log_info(
            f"{folder}: an earlier version kept no hashes of the training images, and their source "
            "is missing or has changed; whether they are among these cannot be told"
        )
    return mask


def _of_trained_groups(
    model: Classifier | Ensemble, workdir: pathlib.Path, dataset: Dataset
) -> Bool[np.ndarray, " n"]:
    """Which images are of a group that the run, or a member of the ensemble, was trained on."""
    members = _members(model, workdir)
    runs = {folder: member.config for folder, member in members.items()}
    mask, unknown = saved_splits.of_trained_groups(runs, model.classes, dataset)
    for folder in unknown:
        console.log_info(
            f"{folder}: does not say which groups it was trained on, and its training images "
            "cannot be read; whether it was trained on groups of these images cannot be told"
        )
    return mask


def _in_groups_of(dataset: Dataset, some: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images are of a group that one of the images `some` is of."""
    found = {dataset.groups[i] for i in np.flatnonzero(some)} - {""}
    return np.array([group in found for group in dataset.groups], bool)


def _members(model: Classifier | Ensemble, workdir: pathlib.Path) -> dict[pathlib.Path, Classifier]:
    """Folder -> classifier of each member of an ensemble, or of the one run in `workdir`."""
    return model.members if isinstance(model, Ensemble) else {workdir: model}


def calibrate_runs(workdirs: Sequence[pathlib.Path], target_error: float | None = None) -> None:
    """Fits what `uncertainty.fit_run` fits to each run, on the run's own splits.

    Args:
      workdirs: Folder of a run, or several.
      target_error: Share of wrong answers among those that are not referred; by default that of the
        run's config.

    Raises:
      UserError: The share is not between 0 and 1, there is no trained run, it has no validation
        split, its source is missing or has changed, or the folder cannot be written to. No file is
        written then.
    """
    _check_target(target_error, calibrate=True)
    _calibrate(ensemble.load(workdirs), workdirs, target_error)
    for workdir in workdirs:
        if (workdir / "evaluate").is_dir():
            console.log_info(
                f"{workdir / 'evaluate'}: the results are from before this calibration"
            )


def _check_target(target_error: float | None, calibrate: bool) -> None:
    if target_error is None:
        return
    if not calibrate:
        raise UserError("--target_error is used by --calibrate only, expected both or none")
    if not 0 < target_error < 1:
        raise UserError(f"--target_error={target_error:g}: expected a number above 0 and below 1")


def _calibrate(
    model: Classifier | Ensemble,
    workdirs: Sequence[pathlib.Path],
    target_error: float | None = None,
) -> None:
    members = _members(model, workdirs[0])
    if target_error is not None:
        for member in members.values():
            member.config = config_lib.with_values(
                member.config, {"evaluation.target_error": target_error}
            )
    read = {}
    for folder, member in members.items():  # All are read before a file is written.
        file = folder / saved_splits.SPLITS_FILE
        make_folder(folder)
        read[folder] = [
            saved_splits.recall(member.config, file, member.classes, name, lazy=name == "train")
            for name in ("train", "validation")
        ]
    for folder, member in members.items():
        uncertainty.fit_run(member, folder, *read.pop(folder))


def _select(
    model: Classifier | Ensemble, workdirs: Sequence[pathlib.Path], tta: str | None, method: str
) -> None:
    """Chooses the weights of the views on the validation split of the one run in `workdirs`."""
    if not isinstance(model, Classifier):
        raise UserError(
            "--tta_select takes one run, expected a single --workdir without folds; each run of an "
            "ensemble keeps its own"
        )
    tta = tta or model.config.evaluation.tta
    if tta in ("none", SELECTED):
        raise UserError(f"--tta is {tta!r}, expected several views to select from, such as d4")
    (workdir,) = workdirs
    validation = saved_splits.recall(
        model.config, workdir / saved_splits.SPLITS_FILE, model.classes, "validation"
    )
    evaluator.select_views(model, workdir, validation, tta, method)
    if model.tta == SELECTED and model.is_calibrated:  # They are of the views selected before.
        _calibrate(model, workdirs)
