"""Classifies images with a trained classifier, or with an ensemble of several.

python -m bloodjax.predict --workdir=DIR [--workdir=DIR2 ...] --input=PATH_OR_SPEC
    --out=FILE.csv|.parquet [--groups=FILE.csv] [--tta=d4] [--classes=a,b,c] [--bad_images=skip]
    [--explain=DIR]
"""

from __future__ import annotations

import os
import pathlib

from bloodjax.cli import command
from bloodjax.errors import UserError

command.flags.DEFINE_multi_string(
    "workdir",
    None,
    "DIR: Folder of the run. Repeated, or of a run with folds: their ensemble.",
)
_INPUT = command.flags.DEFINE_string(
    "input", None, "PATH_OR_SPEC: An image, a folder, .zip or npz of images, or another SPEC."
)
command.flags.DEFINE_string(
    "out",
    None,
    "FILE: Table to write, .csv or .parquet: name, predicted class, confidence, whether and why to "
    "refer the image, and a probability per class.",
)
_TTA = command.flags.DEFINE_string(
    "tta",
    None,
    "VIEWS: Views to average over, such as d4, crops, d4_zoom, none or selected.",
)
_BAD = command.flags.DEFINE_enum(
    "bad_images",
    None,
    ["fail", "skip"],
    "What to do about an unreadable image. By default as the run did.",
)
_EXPLAIN = command.flags.DEFINE_string(
    "explain",
    None,
    "DIR: Folder for an overlay per image, which shows where the network saw the predicted class, "
    "and all maps in maps.npz.",
)
_CLASSES = command.flags.DEFINE_string(
    "classes",
    None,
    "A,B,C: The classes that can occur. By default all that the run knows.",
)
_COLUMNS = command.flags.DEFINE_string("columns", None, command.COLUMNS)
_IMAGES = command.flags.DEFINE_string("images", None, command.IMAGES)
_GROUPS = command.flags.DEFINE_string(
    "groups",
    None,
    "FILE: Table with a row for each group of images, such as a patient.",
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax import config
    from bloodjax.augment import views
    from bloodjax.augment.tta import SELECTED
    from bloodjax.cli import compilation_cache, console
    from bloodjax.data import own_size, sources, spec, statement
    from bloodjax.data.formats import columns as columns_lib
    from bloodjax.data.options import MULTI_LABEL
    from bloodjax.evaluation import answers as answers_lib
    from bloodjax.evaluation import (
        ensemble,
        explanations,
        groups,
        rejection,
        site,
        tables,
        uncertainty,
    )
    from bloodjax.io import files

    out = command.local_path("out")
    by_group = command.local_path("groups") if _GROUPS.value else None
    targets = {"--out": out} | ({"--groups": by_group} if by_group else {})
    path = os.path.expanduser(_INPUT.value)
    tables.check_targets(targets, pathlib.Path(path))
    for target in targets.values():
        files.make_folder(target.parent)  # an error if it is read-only, before computing
    folder = command.local_path("explain") if _EXPLAIN.value else None
    if folder:
        explanations.check_folder(folder, pathlib.Path(path))
    if _TTA.value:
        views.check(_TTA.value, "--tta", (SELECTED,))
    spec.check_images([path], _IMAGES.value)
    workdirs = command.local_paths("workdir")
    model = ensemble.load(workdirs)
    model.check_tta(_TTA.value)
    if by_group and model.config.data.task == MULTI_LABEL:
        raise UserError(
            f"--groups={by_group}: the run gives images several labels; expected a run that gives "
            "each one class"
        )
    if _CLASSES.value is not None:
        model.restrict(site.parse_classes(_CLASSES.value, model.classes, "--classes"))
    if remark := uncertainty.remark(model, workdirs):
        console.log_info(remark)
    compilation_cache.keep(workdirs[0])
    reading = config.with_reading(
        model.config,
        bad_images=_BAD.value,
        fit=model.fit,
        columns=columns_lib.check_flag(_COLUMNS.value),
        images=_IMAGES.value or "",  # `config.data.images` is of the tables of the run
    )
    options = config.read_options(reading)
    dataset = sources.load_images(
        path, model.config.data.image_size, options=options, seed=model.config.seed
    )
    for line in statement.lines({"images": dataset}):
        console.log_info(line)
    if by_group and not any(dataset.groups):
        raise UserError(
            f"--groups={by_group}: no image of {path} has a group; expected a groups.csv, a column "
            "group of a table, or an array groups of an npz"
        )
    answers = model.answer(dataset.images, _TTA.value)
    judged = answers_lib.columns(answers)
    columns = tables.predictions(
        dataset.names,
        model.classes,
        answers.probabilities,
        groups=dataset.groups,
        **judged,
    )
    tables.write(out, columns)
    if by_group:
        table = groups.table(dataset, model.classes, answers.probabilities, labelled=False)
        tables.write(by_group, table)
    for line in answers_lib.remarks(answers, *rejection.usual(rejection.detectors(model))):
        console.log_info(line)
    if folder:
        read = own_size.reader(path, dataset, options)
        explanations.write(model, folder, dataset.names, read, answers.predicted)
    console.log_info(f"{console.counted(len(dataset), 'image')} classified; written to {out}")


if __name__ == "__main__":
    command.run(
        main,
        name="predict",
        required=("workdir", "input", "out"),
        example="--workdir=runs/first --input=slides/ --out=predictions.csv",
    )
