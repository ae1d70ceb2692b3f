"""Scores a trained classifier on labelled pictures.

python -m bloodjax.evaluate --workdir=DIR --data=SPEC [--split=test] [--tta=d4] [--out=DIR] \
    [--corruptions=all]

Of the run's own training data, `--split` names a part in its `splits.json` (train, validation,
test), and by default it is the part kept back for testing. Of any other source it names one of the
source's own splits (train, val, test); by default that is the test split where there are several,
and everything otherwise.

`--corruptions` scores the pictures distorted, too: "all" of BloodMNIST-C, or names of distortions,
"extra" or "everything" (see `distort.corruptions`); corruptions.json and corruptions.html hold what
came of it.
"""

from __future__ import annotations

from bloodjax import cli

cli.flags.DEFINE_string("workdir", None, "The folder that the run lives in.")
_DATA = cli.flags.DEFINE_string("data", None, "A SPEC.")
_SPLIT = cli.flags.DEFINE_string("split", None, "Which part of it; see above.")
_TTA = cli.flags.DEFINE_enum(
    "tta", None, ["none", "flip", "d4"], "Views to average over; by default what the config says."
)
_OUT = cli.flags.DEFINE_string("out", None, "By default a folder in WORKDIR/evaluate.")
_CORRUPTIONS = cli.flags.DEFINE_string(
    "corruptions", None, "Distortions to score the pictures under, too: all, or NAME,NAME,..."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax import classifier, compiled, corruptions, evaluation, logs
    from bloodjax.data import parts
    from bloodjax.distort.corruptions import parse

    chosen = _CORRUPTIONS.value
    names = {} if chosen is None else parse(chosen, "--corruptions")
    workdir = cli.local_path("workdir")
    model = classifier.load(workdir)
    compiled.keep(workdir)
    name, dataset = parts.select(
        model.config, workdir / "splits.json", model.classes, _DATA.value, _SPLIT.value
    )
    tta = _TTA.value or model.config.evaluation.tta
    out = cli.local_path("out") if _OUT.value else workdir / "evaluate" / name
    result, _ = evaluation.evaluate(model, dataset, out, tta=tta)
    logs.say(evaluation.summary(name, result))
    if names:
        result = corruptions.benchmark(model, dataset, out, names=names, tta=tta)
        logs.say(corruptions.summary(result))
    logs.say(f"written to {out}")


if __name__ == "__main__":
    cli.run(main, required=("workdir", "data"))
