"""Classifies pictures with a trained classifier.

python -m bloodjax.predict --workdir=DIR --input=PATH_OR_SPEC --out=FILE.csv
"""

from __future__ import annotations

from bloodjax import cli
from bloodjax.errors import UserError

cli.flags.DEFINE_string("workdir", None, "The folder that the run lives in.")
_INPUT = cli.flags.DEFINE_string(
    "input", None, "A picture, a folder or zip of pictures, an npz with images, or another SPEC."
)
cli.flags.DEFINE_string("out", None, "The table to write: FILE.csv.")
_TTA = cli.flags.DEFINE_enum(
    "tta", None, ["none", "flip", "d4"], "Views to average over; by default what the config says."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax import classifier, compiled, evaluation, files, logs
    from bloodjax.data import sources

    out = cli.local_path("out")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out={out}: expected FILE.csv")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    workdir = cli.local_path("workdir")
    model = classifier.load(workdir)
    compiled.keep(workdir)
    data = model.config.data
    images, names = sources.load_pictures(
        _INPUT.value, data.image_size, bad_images=data.bad_images, seed=model.config.seed
    )
    probabilities = model.predict(images, _TTA.value)
    files.write_whole(out, evaluation.predictions_csv(names, model.classes, probabilities))
    logs.say(f"{len(names):,} pictures classified; written to {out}")


if __name__ == "__main__":
    cli.run(main, required=("workdir", "input", "out"))
