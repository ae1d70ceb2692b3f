"""Tests of benchmarks/ablation.py."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation
from benchmarks.ablation_scores import Answers
from benchmarks.ablation_variants import CUMULATIVE, Ablation, Row
from bloodjax.data.synthetic.render import render_dataset

SMALL = (
    *("--epochs=1", "--seeds=0", "--config.model.name=simple_cnn_050", "--config.model.weights="),
    *("--config.data.image_size=32", "--config.batch_size=16"),
    # The ablation reads only the weights of a run.
    *("--config.evaluation.rejection=none", "--config.evaluation.calibration=none"),
    *("--config.evaluation.label_review=False", "--config.evaluation.bootstrap=10"),
)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the command with more flags, and returns the content of its file of results."""
    # The tests share a compilation cache.
    monkeypatch.setattr(ablation.compilation_cache, "keep", lambda _: None)

    def run(*flags):
        argv = ["ablation", "--train=synthetic:160", f"--dir={tmp_path / 'runs'}"]
        argv += [f"--out={tmp_path / 'out'}", *SMALL]
        monkeypatch.setattr(sys, "argv", [*argv, *flags])
        ablation.main()
        *_, path = sorted((tmp_path / "out").glob("*/*.json"))
        return json.loads(path.read_text())

    return run


def write_site(folder, rename=str):
    """Images of three classes of rendered cells, in a folder for each; returns their number."""
    cells = render_dataset(32, 32, seed=7)
    kept = np.flatnonzero(np.isin(cells.labels, (0, 2, 5)))
    for i in kept.tolist():
        parent = folder / rename(cells.classes[cells.labels[i]])
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(cells.images[i])).save(parent / f"{i}.png")
    return len(kept)


@pytest.mark.slow
def test_adds_parts_and_scores_another_laboratory(tmp_path, start, monkeypatch, capsys):
    rows = {"raw": Row("none", "raw", "none"), "views": Row("none", "epoch", "d4")}
    variants = {"none": {"augment": "none", "ema": 0.9}}
    monkeypatch.setattr(ablation, "CUMULATIVE", Ablation(variants, rows, is_cumulative=True))
    n = write_site(tmp_path / "lab", str.upper)
    content = start(f"--site=lab={tmp_path / 'lab'}")
    assert list(content["rows"]) == list(rows)
    views = content["rows"]["views"]
    assert list(views) == ["clean", "distorted", "lab", "lab, its classes"]
    assert 0 <= views["distorted"]["accuracy"] <= 1
    assert views["lab"]["n"] == n
    assert len(views["lab"]["recall"]) == 3
    assert views["lab, its classes"]["accuracy"] >= views["lab"]["accuracy"]
    assert "gain" in views["clean"]
    assert content["config"] == "recipes/robust"
    assert "| views |" in capsys.readouterr().out


@pytest.mark.slow
def test_changes_one_thing_at_a_time_and_resumes(tmp_path, start, monkeypatch, capsys):
    write_site(tmp_path / "lab")
    flags = (
        *("--config=recipes/travel", "--config.augment=smear(0.8, p=0.3)", "--leave_out"),
        *("--config.evaluation.tta=flip", "--distortions=dust,bubble"),
        *("--add=filters=random_conv(0.7, p=0.2)", "--change=plain loss=loss.label_smoothing:0"),
        f"--site=lab={tmp_path / 'lab'}",
    )
    content = start(*flags)
    assert list(content["rows"]) == [
        *("the whole recipe", "without smear(0.8, p=0.3)"),
        *("with filters", "changed: plain loss"),
    ]
    first, *others = content["rows"].values()
    for part in ("clean", "distorted", "lab", "lab, its classes"):
        assert "gain" not in first[part]
        assert all("gain" in row[part] for row in others)
    assert content["sites"] == {"lab": str(tmp_path / "lab")}
    config = json.loads((tmp_path / "runs" / "with-filters-0" / "config.json").read_text())
    assert config["augment"] == "random_conv(0.7, p=0.2)|smear(0.8, p=0.3)"
    assert config["evaluation"]["tta"] == "none"
    assert content["trained"]["with filters"]["views"] == "flip"
    assert "| with filters |" in capsys.readouterr().out
    # What is trained is not trained again.
    log = tmp_path / "runs" / "with-filters-0" / "metrics.jsonl"
    before = log.read_bytes()
    assert start(*flags)["rows"] == content["rows"]
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--distortions=sand", "sand"),
        ("--site=lab", "--site=lab: expected --site=NAME=TEXT"),
        ("--site=clean=cells", "--site=clean=cells: expected another name than 'clean'"),
        ("--change=a=loss.consistency", "expected --change=NAME=KEY:VALUE"),
        ("--change=a=loss.consistancy:1", "unknown config key config.loss.consistancy"),
        ("--add=a=blurr", "did you mean blur?"),
        ("--config=recipes/travl", "--config=recipes/travl: no such recipe or file"),
    ],
)
def test_a_wrong_flag_is_one_line_with_status_2(flag, message, start, capsys):
    with pytest.raises(SystemExit) as error:
        start(flag)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_site_with_an_unknown_class_is_refused_before_training(tmp_path, start, capsys):
    write_site(tmp_path / "lab", lambda name: f"{name} of lab")
    with pytest.raises(SystemExit):
        start(f"--site=lab={tmp_path / 'lab'}")
    assert f"{tmp_path / 'lab'}: contains the classes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_overrides_have_precedence_over_cumulative_variants_only(start, monkeypatch):
    found = {}
    monkeypatch.setattr(ablation.run, "train", lambda c, workdir: found.update({workdir.name: c}))
    monkeypatch.setattr(ablation.ablation_scores, "answers", _no_answers)
    start("--config.augment=flip")
    assert {config.augment for config in found.values()} == {"flip"}
    assert len(found) == len(CUMULATIVE.variants)
    found.clear()
    start("--config.augment=flip|blur", "--config.evaluation.tta=flip", "--add=a=hue")
    augments = {name: config.augment for name, config in found.items()}
    assert augments == {"the-whole-recipe-0": "flip|blur", "with-a-0": "hue|flip|blur"}
    assert {config.evaluation.tta for config in found.values()} == {"none"}


def _no_answers(workdir, rows, *_):
    found = Answers.of(0, np.array([[0.25, 0.75]]), np.array([1]), ("a", "b"))
    return {row: {"clean": found, "distorted": found} for row in rows}
