"""Evaluation of images that a run was trained on, in another wrapping."""

import csv
import json
import shutil

import numpy as np
import pytest

from bloodjax.data import splits
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import scoring
from bloodjax.evaluation.site import Site
from bloodjax.training import saved_splits


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(scoring.console, "log_info", lines.append)
    return lines


@pytest.fixture(scope="module")
def parts(trained):
    return json.loads((trained / "splits.json").read_text())["parts"]


def save(path, dataset):
    np.savez(path, images=dataset.images, labels=dataset.labels, classes=np.array(dataset.classes))
    return str(path)


@pytest.fixture(scope="module")
def source():
    """The images of the run `trained`."""
    return render.render_dataset(160, 32, seed=0)


def test_scores_the_others_and_all_separately(trained, parts, source, said, tmp_path):
    file = save(tmp_path / "copy.npz", source)
    result = scoring.evaluate_runs([trained], file, None, None, tmp_path / "out")
    seen = len(parts["train"])
    assert f"copy: {seen} of 160 images were trained on, as their pixels show" in said[3]
    assert any(line.startswith("copy, without the images trained on: accuracy") for line in said)
    assert any(line.startswith("copy, without the images trained on: refers ") for line in said)
    assert said[-2].startswith("copy, all: accuracy")
    assert (result["n"], result["all"]["n"]) == (160 - seen, 160)
    for folder, n in ((tmp_path / "out", 160 - seen), (tmp_path / "out/all", 160)):
        written = json.loads((folder / "metrics.json").read_text())
        assert (written["n"], written["source"]["trained_on"]) == (n, seen)


def test_an_evaluation_leaves_nothing_of_the_one_before(trained, source, tmp_path):
    """Another file at the same path: parts that only the old one had would be of other images."""
    out = tmp_path / "out"
    file = save(tmp_path / "cells.npz", source)
    scoring.evaluate_runs([trained], file, None, None, out, corruptions="impulse_noise")
    assert (out / "all/metrics.json").exists()
    assert (out / "corruptions.html").exists()
    (out / "all/notes.txt").write_text("the user's")
    save(tmp_path / "cells.npz", render.render_dataset(24, 32, seed=5))
    scoring.evaluate_runs([trained], file, None, None, out)
    assert {path.name for path in out.iterdir()} == {"metrics.json", "predictions.csv", "all"}
    assert [path.name for path in (out / "all").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta_select": "x"}, "--tta_select=x: expected none, greedy or weights"),
        ({"images": "pictures"}, "--images=pictures: only a table has its images elsewhere"),
    ],
)
def test_a_wrong_argument_is_named(trained, options, message):
    with pytest.raises(UserError, match=message):
        scoring.evaluate_runs([trained], "synthetic:24", None, None, None, **options)


def test_scores_new_images_as_before(trained, said, tmp_path):
    file = save(tmp_path / "new.npz", render.render_dataset(24, 32, seed=5))
    result = scoring.evaluate_runs([trained], file, None, None, tmp_path / "out")
    assert result["n"] == 24
    assert "all" not in result
    assert not [line for line in said if "trained on" in line]


def test_at_a_site_that_frames_cells_training_images_are_looked_for_as_training_read_them(
    trained, tmp_path, monkeypatch
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    Site(fit="40px").write(workdir)
    select, fits = saved_splits.select, []

    def spied(*arguments):
        fits.append(arguments[6])
        return select(*arguments)

    monkeypatch.setattr(saved_splits, "select", spied)
    file = save(tmp_path / "new.npz", render.render_dataset(24, 64, seed=5))
    assert scoring.evaluate_runs([workdir], file, None, None, tmp_path / "out")["n"] == 24
    assert fits == ["40px", "crop"]


def test_says_that_all_images_were_trained_on(trained, parts, source, said, tmp_path):
    seen = source.take(np.isin(source.names, parts["train"]))
    file = save(tmp_path / "seen.npz", seen)
    result = scoring.evaluate_runs([trained], file, None, None, tmp_path / "out")
    assert result["n"] == len(seen)
    assert f"seen: {len(seen)} of {len(seen)} images were trained on, as their pixels show" in said


def test_the_run_s_own_test_split_is_scored_whole(trained, parts, said, tmp_path):
    result = scoring.evaluate_runs([trained], "synthetic:160", None, None, tmp_path / "out")
    assert result["n"] == len(parts["test"])
    assert not [line for line in said if "trained on" in line]


SEEN = ("ig", "monocyte", "platelet")


@pytest.fixture
def three(tmp_path):
    """A file with images of three classes."""
    cells = render.render_dataset(48, 32, seed=5)
    listed = [cells.classes.index(name) for name in SEEN]
    return save(tmp_path / "three.npz", cells.take(np.isin(cells.labels, listed)))


def test_only_the_listed_classes_can_occur(trained, three, said, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    everything = scoring.evaluate_runs([run], three, None, None, None)
    result = scoring.evaluate_runs([run], three, None, None, None, classes="PLATELET,ig,monocyte")
    assert "site_classes" not in everything
    assert result["site_classes"] == result["source"]["site_classes"] == list(SEEN)
    assert result["classes"] == list(render.CLASSES)
    assert result["accuracy"] >= everything["accuracy"]
    confusion = np.array(result["confusion_matrix"])
    absent = [i for i, name in enumerate(render.CLASSES) if name not in SEEN]
    assert confusion.shape == (8, 8)
    assert confusion[absent].sum() == confusion[:, absent].sum() == 0
    assert result["per_class"]["basophil"]["recall"] is None
    present = [result["per_class"][name]["recall"] for name in SEEN]
    assert abs(result["balanced_accuracy"] - np.mean(present)) < 1e-9
    assert abs(result["recall_macro"] - np.mean(present)) < 1e-9
    # Neither result replaces the other.
    for name in ("three", "three-3-classes"):
        assert f"written to {run}/evaluate/{name}" in said
    again = scoring.evaluate_runs([run], three, None, None, None, classes=SEEN)
    assert said[-1] == f"written to {run}/evaluate/three-3-classes"
    assert again == result


def test_an_image_of_a_class_that_cannot_occur_is_one_line(trained, three, said, tmp_path):
    with pytest.raises(UserError) as error:
        scoring.evaluate_runs([trained], three, None, None, tmp_path / "out", classes="ig,platelet")
    n = sum(label == 5 for label in np.load(three)["labels"])
    found = f"--classes: {n} images of {three} labelled monocyte; "
    assert str(error.value) == f"{found}expected only the classes ig, platelet"
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    Site(("ig", "platelet")).write(run)
    with pytest.raises(
        UserError, match=r"labelled monocyte; .* of the run's site\.json, or others"
    ):
        scoring.evaluate_runs([run], three, None, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"--classes=igg: 'igg' is no class; did you mean ig\?"):
        scoring.evaluate_runs([trained], three, None, None, tmp_path / "out", classes="igg")
    result = scoring.evaluate_runs([run], three, None, None, tmp_path / "out", classes=SEEN)
    assert result["site_classes"] == list(SEEN)


def test_an_ensemble_answers_with_the_listed_classes(trained, three, said, tmp_path):
    shutil.copytree(trained, tmp_path / "b")
    runs = [trained, tmp_path / "b"]
    result = scoring.evaluate_runs(runs, three, None, None, tmp_path / "out", classes=SEEN)
    assert result["site_classes"] == list(SEEN)
    confusion = np.array(result["confusion_matrix"])
    assert confusion.sum() == sum(confusion[i, j] for i in (3, 5, 7) for j in (3, 5, 7))


def test_groups_that_were_trained_on_are_scored_apart(trained, said, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    content = json.loads((run / "splits.json").read_text())
    content["groups"]["train"] = splits.hash_groups(["P1", "P7"])
    (run / "splits.json").write_text(json.dumps(content))
    cells = render.render_dataset(48, 32, seed=9)
    keys = np.array([f"P{i // 6}" for i in range(48)])
    file = tmp_path / "cells.npz"
    np.savez(file, images=cells.images, labels=cells.labels, classes=cells.classes, groups=keys)
    result = scoring.evaluate_runs([run], str(file), None, None, tmp_path / "out")
    found = result["groups"]["trained_on"]
    assert (found["groups"], found["images"], found["others"]["n"]) == (["P1", "P7"], 12, 36)
    assert [line for line in said if line.startswith("cells: 2 groups (P1, P7; 12 images) have")]
    with (tmp_path / "out/predictions.csv").open() as table:
        rows = list(csv.DictReader(table))
    correct = [r["label"] == r["predicted"] for r in rows if r["group"] not in ("P1", "P7")]
    assert found["others"]["accuracy"] == pytest.approx(np.mean(correct))
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == result


def test_groups_of_images_that_were_trained_on_count_as_trained_on(
    trained, parts, source, tmp_path
):
    """The run's own source names no groups; the pixels show which ones it has seen."""
    is_seen = np.isin(source.names, parts["train"])
    seen, new = np.flatnonzero(is_seen), np.flatnonzero(~is_seen)
    keys = np.full(len(source), "", "<U2")
    keys[[seen[0], new[0]]], keys[seen[1]], keys[new[1:3]] = "P1", "P2", "P3"
    file = tmp_path / "cells.npz"
    np.savez(file, images=source.images, labels=source.labels, classes=source.classes, groups=keys)
    result = scoring.evaluate_runs([trained], str(file), None, None, tmp_path / "out")
    found = result["groups"]["trained_on"]
    assert (found["groups"], found["images"], found["others"]["n"]) == (["P1"], 1, len(new) - 1)
    found = result["all"]["groups"]["trained_on"]
    assert (found["groups"], found["images"]) == (["P1", "P2"], 3)
