"""Scores trained runs on a labelled source: `bloodjax.evaluate`, and the command of that name."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Literal

from bloodjax import config as config_lib
from bloodjax.augment import views
from bloodjax.augment.tta import SELECTED
from bloodjax.cli import console
from bloodjax.corruptions import registry
from bloodjax.data import statement
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble, evaluator, results, robustness
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.training import input_pipeline


def evaluate_runs(
    workdirs: Sequence[pathlib.Path],
    data: str,
    split: str | None,
    tta: str | None,
    out: pathlib.Path | None,
    *,
    tta_select: str = "none",
    corruptions: str | None = None,
    bad_images: Literal["fail", "skip"] | None = None,
) -> dict:
    """Scores a run, or an ensemble of runs, and writes the files of `evaluator.evaluate`.

    Results of another source are never replaced (`results.folder`).

    See `bloodjax.evaluate` for the arguments, the result and the errors.
    """
    names = {} if corruptions is None else registry.parse(corruptions, "--corruptions")
    if tta:
        views.check(tta, "--tta", (SELECTED,))
    model = ensemble.load(workdirs)
    if tta_select != "none":
        _select(model, workdirs, tta, tta_select)
        tta = SELECTED
    config = config_lib.with_bad_images(model.config, bad_images)
    name, dataset = input_pipeline.select(
        config, workdirs[0] / "splits.json", model.classes, data, split
    )
    for line in statement.lines({name: dataset}):
        console.log_info(line)
    if isinstance(model, Ensemble) and name != "train":
        model.check_unseen(data, dataset.names)
    is_own = name in input_pipeline.SPLITS
    if len(workdirs) > 1:
        name = f"{name}-ensemble"
    source = (results.of_run if is_own else results.of_data)(name, data)
    out = results.folder(out, workdirs[0] / "evaluate", name, source)
    result, _ = evaluator.evaluate(model, dataset, out, tta=tta, source=source)
    for member in result.get("members", ()):
        console.log_info(
            f"{member['workdir']} ({member['network']}): accuracy {member['accuracy']:.4f}, "
            f"loss {member['loss']:.4f}"
        )
    console.log_info(evaluator.summary(name, result))
    if names:
        result["corruptions"] = robustness.benchmark(model, dataset, out, names=names, tta=tta)
        console.log_info(robustness.summary(result["corruptions"]))
    console.log_info(f"written to {out}")
    return result


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
    validation = input_pipeline.recall(
        model.config, workdir / "splits.json", model.classes, "validation"
    )
    evaluator.select_views(model, workdir, validation, tta, method)
