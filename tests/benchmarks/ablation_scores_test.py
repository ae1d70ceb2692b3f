import json
import sys

import numpy as np
import pytest

from benchmarks import ablation


def _answers(seed, guesses, labels):
    return ablation.Answers.of(seed, np.eye(2)[guesses] * 0.98 + 0.01, np.array(labels))


def test_a_row_pools_the_seeds_and_compares_with_the_row_above():
    labels = [0, 1, 0, 1]
    before = _answers(0, [0, 0, 1, 1], labels).joined(_answers(1, [0, 1, 1, 0], labels))
    after = _answers(0, [0, 1, 0, 1], labels).joined(_answers(1, [0, 1, 1, 1], labels))
    figures = ablation.row(
        {"clean": after, "distorted": after}, {"clean": before, "distorted": before}
    )
    assert figures["clean"]["n"] == 8
    assert figures["clean"]["accuracy"] == pytest.approx(7 / 8)
    assert figures["clean"]["seeds"] == {"0": 1.0, "1": 0.75}
    assert figures["clean"]["gain"]["difference"] == pytest.approx(3 / 8)
    low, high = figures["clean"]["ci95"]
    assert low < 7 / 8 <= high


def test_the_first_row_has_no_gain_and_the_table_has_a_line_a_row():
    one = _answers(0, [0, 1], [0, 1]).joined(_answers(1, [0, 0], [0, 1]))
    found = {"clean": one, "distorted": one}
    rows = {"first": ablation.row(found, None), "second": ablation.row(found, found)}
    lines = ablation.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| first | 0.750 (")
    assert lines[2].endswith("|  |")
    assert "+0.000 (+0.000 to +0.000)" in lines[3]


def test_each_row_is_of_a_variant_and_ema_rows_are_of_one_with_an_average():
    for whose, which, _ in ablation.ROWS.values():
        assert whose in ablation.VARIANTS
        if which == "raw":
            assert ablation.VARIANTS[whose]["ema"] > 0


@pytest.mark.slow
def test_trains_scores_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "VARIANTS", {"none": {"augment": "none", "ema": 0.9}})
    rows = {"raw": ("none", "raw", "none"), "views": ("none", "epoch", "d4")}
    monkeypatch.setattr(ablation, "ROWS", rows)
    # The tests share a compilation cache.
    monkeypatch.setattr(ablation.compilation_cache, "keep", lambda _: None)
    argv = ["ablation", "--train=synthetic:160", f"--dir={tmp_path}", f"--out={tmp_path / 'out'}"]
    argv += ["--epochs=1", "--seeds=0", "--config.model.name=simple_cnn", "--config.model.weights="]
    argv += ["--config.data.image_size=32", "--config.batch_size=16"]
    monkeypatch.setattr(sys, "argv", argv)
    ablation.main()
    (path,) = (tmp_path / "out").glob("*/ablation_*.json")
    content = json.loads(path.read_text())
    assert set(content["rows"]) == set(rows)
    assert 0 <= content["rows"]["views"]["distorted"]["accuracy"] <= 1
    assert "gain" in content["rows"]["views"]["clean"]
    assert "| views |" in capsys.readouterr().out


def test_a_wrong_distortion_is_one_line_with_status_2(tmp_path, monkeypatch, capsys):
    argv = ["ablation", "--train=synthetic:160", f"--dir={tmp_path}", "--distortions=sand"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as error:
        ablation.main()
    assert error.value.code == 2
    assert "sand" in capsys.readouterr().err
