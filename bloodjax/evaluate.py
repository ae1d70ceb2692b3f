"""Scores a trained classifier, or an ensemble of several, on labelled images.

python -m bloodjax.evaluate --workdir=DIR [--workdir=DIR2 ...] --data=SPEC [--split=test]
    [--tta=d4] [--tta_select=greedy] [--calibrate [--target_error=0.01]] [--corruptions=all]
    [--bad_images=skip] [--classes=a,b,c] [--columns=path=image_id,label=dx] [--images=DIR]
    [--out=DIR]

`bloodjax.evaluate`, the function, explains the flags. With --calibrate and without --data, it only
fits calibration, referral and detector.
"""

from __future__ import annotations

from bloodjax.cli import command
from bloodjax.errors import UserError

command.flags.DEFINE_multi_string(
    "workdir",
    None,
    "DIR: Folder of the run. Repeated, or of a run with folds: their ensemble.",
)
_DATA = command.flags.DEFINE_string(
    "data", None, "SPEC: The labelled images. Not needed with --calibrate."
)
_SPLIT = command.flags.DEFINE_string(
    "split",
    None,
    "NAME: Part of the run's data or another source. By default test or all.",
)
_TTA = command.flags.DEFINE_string(
    "tta",
    None,
    "VIEWS: Views to average over, such as d4, crops, d4_zoom, none or selected.",
)
_SELECT = command.flags.DEFINE_enum(
    "tta_select",
    "none",
    ["none", "greedy", "weights"],
    "Weight the views on validation first.",
)
_CALIBRATE = command.flags.DEFINE_bool(
    "calibrate",
    False,
    "Fit calibration, referral and detector to the run's splits first.",
)
_TARGET = command.flags.DEFINE_float(
    "target_error",
    None,
    "SHARE: For --calibrate, of wrong answers among those not referred.",
)
_OUT = command.flags.DEFINE_string(
    "out", None, "DIR: Folder to write to. By default in WORKDIR/evaluate."
)
_CORRUPTIONS = command.flags.DEFINE_string(
    "corruptions",
    None,
    "NAMES: Score under distortions too: all, extra, everything or NAME,...",
)
_BAD = command.flags.DEFINE_enum(
    "bad_images",
    None,
    ["fail", "skip"],
    "What to do about an unreadable image. By default as the run did.",
)
_LAYOUT = command.flags.DEFINE_string(
    "layout",
    None,
    "LEVELS: What the folders mean, such as class/group; as config.data.layout.",
)
_CLASSES = command.flags.DEFINE_string(
    "classes",
    None,
    "A,B,C: The classes that can occur. By default all that the run knows.",
)
_COLUMNS = command.flags.DEFINE_string("columns", None, command.COLUMNS)
_IMAGES = command.flags.DEFINE_string("images", None, command.IMAGES)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import compilation_cache
    from bloodjax.data import spec
    from bloodjax.evaluation import scoring

    workdirs = command.local_paths("workdir")
    if not _DATA.value and not _CALIBRATE.value:
        raise UserError("--data is missing; --help says what it is")
    if not _DATA.value:
        of_data = (_SPLIT, _TTA, _SELECT, _OUT, _CORRUPTIONS, _BAD, _LAYOUT, _CLASSES, _COLUMNS)
        for flag in (*of_data, _IMAGES):
            if flag.value != flag.default:
                raise UserError(f"--{flag.name} needs --data, which is missing")
    compilation_cache.keep(workdirs[0])
    if not _DATA.value:
        scoring.calibrate_runs(workdirs, _TARGET.value)
        return
    out = command.local_path("out") if _OUT.value else None
    if out:
        spec.check_out(out, [_DATA.value])
    scoring.evaluate_runs(
        workdirs,
        _DATA.value,
        _SPLIT.value,
        _TTA.value,
        out,
        tta_select=_SELECT.value,
        calibrate=_CALIBRATE.value,
        target_error=_TARGET.value,
        corruptions=_CORRUPTIONS.value,
        bad_images=_BAD.value,
        layout=_LAYOUT.value,
        classes=_CLASSES.value,
        columns=_COLUMNS.value,
        images=_IMAGES.value,
    )


if __name__ == "__main__":
    command.run(
        main,
        name="evaluate",
        required=("workdir",),
        example="--workdir=runs/first --data=test.zip --tta=d4",
    )
