"""Evaluation of images that a run was trained on, in another wrapping."""

import json

import numpy as np
import pytest

from bloodjax.data.synthetic import render
from bloodjax.evaluation import scoring


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


def test_scores_new_images_as_before(trained, said, tmp_path):
    file = save(tmp_path / "new.npz", render.render_dataset(24, 32, seed=5))
    result = scoring.evaluate_runs([trained], file, None, None, tmp_path / "out")
    assert result["n"] == 24
    assert "all" not in result
    assert not [line for line in said if "trained on" in line]


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
