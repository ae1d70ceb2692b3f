"""Scores a trained classifier, or an ensemble of them, on labelled images.

python -m bloodjax.evaluate --workdir=DIR[,DIR2,...] --data=SPEC [--split=test] [--tta=d4]
    [--tta_select=greedy] [--corruptions=all] [--out=DIR]

Several workdirs, or a workdir of folds, are an ensemble: the mean of the runs' probabilities.

Of the run's own training data, `--split` names a part in its `splits.json` (train, validation,
test), and by default it is the part kept back for testing. Of any other source it names one of the
source's own splits (train, val, test); by default that is the test split where there are several,
and everything otherwise.

`--corruptions` scores the images distorted, too: "all" of BloodMNIST-C, or names of distortions,
"extra" or "everything" (see `corruptions.registry`); corruptions.json and corruptions.html hold what
came of it.
"""

from __future__ import annotations

import pathlib

from bloodjax.cli import command
from bloodjax.errors import UserError

command.flags.DEFINE_multi_string(
    "workdir", None, "The folder that the run lives in; several for their ensemble."
)
_DATA = command.flags.DEFINE_string("data", None, "A SPEC.")
_SPLIT = command.flags.DEFINE_string("split", None, "Which part of it; see above.")
_TTA = command.flags.DEFINE_string(
    "tta",
    None,
    "Views to average over: none, flip, d4, crops, colour, robust, several joined by +, or "
    "selected; by default what the run selected, or what its config says.",
)
_SELECT = command.flags.DEFINE_enum(
    "tta_select",
    "none",
    ["none", "greedy", "weights"],
    "How to weigh these views on the run's validation part first; DIR/tta.json keeps the weights.",
)
_OUT = command.flags.DEFINE_string("out", None, "By default a folder in WORKDIR/evaluate.")
_CORRUPTIONS = command.flags.DEFINE_string(
    "corruptions", None, "Distortions to score the images under, too: all, or NAME,NAME,..."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.augment import views
    from bloodjax.augment.tta import SELECTED
    from bloodjax.cli import compilation_cache, console
    from bloodjax.corruptions.registry import parse
    from bloodjax.evaluation import ensemble, evaluator, robustness
    from bloodjax.training import input_pipeline

    chosen = _CORRUPTIONS.value
    names = {} if chosen is None else parse(chosen, "--corruptions")
    if _TTA.value:
        views.check(_TTA.value, "--tta", (SELECTED,))
    workdirs = command.local_paths("workdir")
    model = ensemble.load(workdirs)
    compilation_cache.keep(workdirs[0])
    tta = _TTA.value
    if _SELECT.value != "none":
        _select(model, workdirs)
        tta = SELECTED
    name, dataset = input_pipeline.select(
        model.config, workdirs[0] / "splits.json", model.classes, _DATA.value, _SPLIT.value
    )
    if isinstance(model, ensemble.Ensemble) and name != "train":
        model.check_unseen(_DATA.value, dataset.names)
    if len(workdirs) > 1:
        name = f"{name}-ensemble"
    out = command.local_path("out") if _OUT.value else workdirs[0] / "evaluate" / name
    result, _ = evaluator.evaluate(model, dataset, out, tta=tta)
    for member in result.get("members", ()):
        console.log_info(
            f"{member['workdir']} ({member['network']}): accuracy {member['accuracy']:.4f}, "
            f"loss {member['loss']:.4f}"
        )
    console.log_info(evaluator.summary(name, result))
    if names:
        result = robustness.benchmark(model, dataset, out, names=names, tta=tta)
        console.log_info(robustness.summary(result))
    console.log_info(f"written to {out}")


def _select(model, workdirs: list[pathlib.Path]) -> None:
    """Chooses the views' weights on the validation part of the one run in `workdirs`."""
    from bloodjax.augment.tta import SELECTED
    from bloodjax.evaluation import evaluator
    from bloodjax.evaluation.classifier import Classifier
    from bloodjax.training import input_pipeline

    if not isinstance(model, Classifier):
        raise UserError(
            "--tta_select takes one run, expected a single --workdir without folds; each run of an "
            "ensemble keeps its own"
        )
    tta = _TTA.value or model.config.evaluation.tta
    if tta in ("none", SELECTED):
        raise UserError(f"--tta is {tta!r}, expected several views to select from, such as d4")
    (workdir,) = workdirs
    validation = input_pipeline.recall(
        model.config, workdir / "splits.json", model.classes, "validation"
    )
    evaluator.select_views(model, workdir, validation, tta, _SELECT.value)


if __name__ == "__main__":
    command.run(main, required=("workdir", "data"))
