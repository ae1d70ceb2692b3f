import json
import sys

import numpy as np
import pytest

from benchmarks import rare_classes
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError


def dataset(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros(
        (16, 16, 3), np.uint8
    )
    blank = ("",) * len(labels)
    names = tuple(map(str, range(len(labels))))
    return Dataset(images, labels, names, tuple("abc"), blank, blank)


def test_a_cut_dataset_has_a_rare_class_and_the_others_in_their_shares():
    whole = dataset([60, 120, 40])
    parts = [rare_classes.cut(whole, 2, 5, 90, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for part in parts:
        assert np.bincount(part.labels).tolist() == [30, 60, 5]
        assert len(set(part.names)) == len(part)
    assert parts[0].names == parts[1].names
    assert parts[0].names != parts[2].names


def test_a_dataset_that_is_too_small_for_the_cut():
    with pytest.raises(UserError, match="need 50 images of c, but the training images have 40"):
        rare_classes.cut(dataset([60, 120, 40]), 2, 50, 90, np.random.default_rng(0))


def test_adjusting_divides_by_the_shares():
    found = rare_classes.adjusted(np.array([[0.8, 0.2]], np.float32), np.array([90, 10]))
    np.testing.assert_allclose(found, [[0.8 / 9, 0.2]] / np.array(0.8 / 9 + 0.2), rtol=1e-6)


def run(name, found, predicted, correct):
    return {"class": name, "rare": 10, "found": found, "predicted": predicted} | {
        "n": 100,
        "correct": correct,
        "mean_recall": correct / 100,
    }


def test_figures_pool_the_runs_with_exact_intervals():
    probabilities = np.eye(3)[[0, 0, 1, 2, 2]]
    counts = rare_classes.score(probabilities, np.array([0, 1, 1, 1, 2]), 1)
    assert counts == {
        "rare": 3,
        "found": 1,
        "predicted": 1,
        "n": 5,
        "correct": 3,
        "mean_recall": pytest.approx((1 + 1 / 3 + 1) / 3),
    }
    row = rare_classes.pooled([run("a", 10, 10, 90), run("a", 10, 10, 90), run("b", 10, 20, 80)])
    assert row["recall"]["value"] == 1
    low, high = row["recall"]["ci95"]
    assert (low, high) == (pytest.approx(0.025 ** (1 / 30)), 1)
    assert row["precision"]["value"] == pytest.approx(30 / 40)
    assert row["recall_by_class"] == {"a": 1, "b": 1}
    assert row["recall_of_runs"] == [1, 1]
    never = rare_classes.pooled([run("a", 0, 0, 90), run("b", 0, 0, 90)])
    assert never["precision"] == {"value": None, "ci95": None}
    lines = rare_classes.table({"all found": row, "none": never}).splitlines()
    assert lines[2].startswith("| all found | 1.000 (0.884 to 1.000) | 1.00 to 1.00 | 1.00 |")
    assert "| - |" in lines[3]


def test_every_method_is_a_config_and_every_adjusted_row_one_of_them():
    for changes in rare_classes.METHODS.values():
        config = rare_classes.make_config(5, 1, changes, ["model.name=simple_cnn"])
        assert config.phases.finetune.epochs == 5
        assert config.model.name == "simple_cnn"
    assert set(rare_classes.AFTERWARDS.values()) <= set(rare_classes.METHODS)


@pytest.mark.slow
def test_trains_scores_and_writes(tmp_path, monkeypatch, capsys):
    # The tests share a compilation cache.
    monkeypatch.setattr(rare_classes.compilation_cache, "keep", lambda _: None)
    argv = ["rare_classes", "--train=synthetic:320", "--test=synthetic:80", f"--dir={tmp_path}"]
    argv += [f"--out={tmp_path / 'out'}", "--classes=monocyte", "--kept=4", "--others=60"]
    argv += ["--methods=plain,sqrt sampling"]
    argv += ["--epochs=1", "--seeds=0", "--config.model.name=simple_cnn_050"]
    argv += ["--config.model.weights=", "--config.data.image_size=32", "--config.batch_size=16"]
    monkeypatch.setattr(sys, "argv", argv)
    rare_classes.main()
    (path,) = (tmp_path / "out").glob("*/rare_classes_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert set(rows) == {"plain", "plain, adjusted after training", "sqrt sampling"}
    assert "| sqrt sampling |" in capsys.readouterr().out
    # What is done is not done again.
    monkeypatch.setattr(rare_classes, "Trainings", lambda: None)
    rare_classes.main()
    monkeypatch.setattr(sys, "argv", [*argv, "--epochs=2"])
    with pytest.raises(SystemExit):
        rare_classes.main()
    assert "is of other settings: expected another --dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--classes=blast", "--classes=blast: expected names of basophil, "),
        ("--methods=smote", "--methods=smote: expected names of plain, "),
    ],
)
def test_an_unknown_name_is_one_line_with_status_2(flag, message, tmp_path, monkeypatch, capsys):
    argv = ["rare_classes", "--train=synthetic:80", "--test=synthetic:80", f"--dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [*argv, flag, "--config.data.image_size=32"])
    monkeypatch.setattr(rare_classes.compilation_cache, "keep", lambda _: None)
    with pytest.raises(SystemExit) as error:
        rare_classes.main()
    assert error.value.code == 2
    assert message in capsys.readouterr().err
