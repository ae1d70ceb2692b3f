"""Tests of benchmarks/tables.py."""

import json
import pathlib

import pytest

from benchmarks import tables

ROOT = pathlib.Path(__file__).parents[2]


def result(batch, median, **ratios):
    return {
        "task": {"kind": "train", "network": "resnet50", "batch": batch},
        "date": "2026-01-02",
        "contenders": {"bloodjax": {"median": median}},
        "ratios": {
            name: {"median": m, "low": m - 0.1, "high": m + 0.1} for name, m in ratios.items()
        },
    }


def page(**inside):
    """A page with all markers, and text between some of them."""
    made = ": made by python -m benchmarks.tables -->"
    names = [*tables.TABLES, "compiled", "parity"]
    return "\n".join(f"<!-- {name}{made}{inside.get(name, '')}<!-- /{name} -->" for name in names)


def test_the_fastest_peer_of_a_kind_is_shown():
    ratios = {"timm": 0.5, "timm_channels_last": 0.7, "timm_channels_last_huge_pages": 0.75}
    found = tables.speed_table([result(16, 0.5, **ratios), result(64, 2.0)])
    header, _, first, second = found.splitlines()
    assert header == "| task | bloodjax | images/s | time / timm's | date |"
    assert first.endswith("| 500 ms | 32 | 0.75 (0.65 to 0.85) | 2026-01-02 |")
    assert second.endswith("| 2000 ms | 32 | - | 2026-01-02 |")


def test_a_start_is_told_in_seconds():
    start = result(16, 12.25)
    start["task"]["kind"] = "start"
    start["contenders"]["bloodjax"]["cold_seconds"] = [50.0, 40.0, 60.0]
    row = tables.speed_table([start]).splitlines()[-1]
    assert "| 12.2 s; 50.0 s with an empty compilation cache | - |" in row


def test_the_newest_result_of_each_task_fills_the_page(tmp_path):
    folder = tmp_path / "a_device"
    folder.mkdir()
    for name, rows in (("1", [result(16, 9.0), result(64, 8.0)]), ("2", [result(16, 4.0)])):
        (folder / f"{name}.json").write_text(json.dumps({"device": "A device", "results": rows}))
    filled = tables.fill(f"before {page(speed=' old ')} after", tmp_path)
    assert filled.startswith("before ")
    assert filled.endswith(" after")
    assert "A device:" in filled
    assert "4000 ms" in filled
    assert "8000 ms" in filled
    assert "9000 ms" not in filled
    assert " old " not in filled
    assert tables.fill(filled, tmp_path) == filled


def test_recorded_runs_are_a_row_each(tmp_path):
    folder = tmp_path / "a_device"
    folder.mkdir()
    run = {"data": "cells", "command": "--config=a", "n": 1793, "accuracy": 0.9868}
    measured = {**run, "ci95": [0.98, 0.99], "baseline": 0.9, "time": "1 min", "date": "2026-01-02"}
    same = {**run, "command": "", "accuracy": 0.5, "date": "2026-01-02"}
    content = {"device": "A device", "runs": [measured, same]}
    (folder / "runs_1.json").write_text(json.dumps(content))
    rows = tables.fill(page(), tmp_path).splitlines()
    about = "| cells | 1,793 | 0.987 (0.980 to 0.990) | 0.900 | 1 min | 2026-01-02 | `--config=a` |"
    assert about in rows
    assert "| cells | 1,793 | 0.500 |  |  | 2026-01-02 | same run |" in rows


def test_the_newest_ablation_of_each_recipe_is_shown(tmp_path):
    folder = tmp_path / "a_device"
    folder.mkdir()
    about = {"device": "A device", "epochs": 1, "seeds": [0, 1], "overrides": ["ema=0.9"]}
    scored = {"accuracy": 0.5, "seeds": {"0": 0.25, "1": 0.75}}
    for date, recipe in (
        ("2026-01-02", "travel"),
        ("2026-01-03", "robust"),
        ("2026-01-04", "travel"),
    ):
        content = {**about, "config": recipe, "date": date, "rows": {"whole": {"lab": scored}}}
        (folder / f"one_change_{date}.json").write_text(json.dumps(content))
    text = tables.fill(page(), tmp_path)
    assert "`--config=travel`, 2026-01-04, 1 epoch, 2 seeds, `--config.ema=0.9`. A cell" in text
    assert "`--config=robust`, 2026-01-03" in text
    assert "2026-01-02" not in text
    assert "| whole | 0.500; 0.250, 0.750 |" in text


def test_a_page_without_markers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected <!-- runs"):
        tables.fill("nothing", tmp_path)


PRINTED = """
123 passed

| network | keras | timm | torchvision (variant legacy) | torchvision |
|---|---|---|---|---|
| resnet50 | 5e-05 | 2e-05 | 3e-06 | 1e-06 |
| vgg16 |  | 4e-06 |  |  |
=== done
"""


def test_the_printed_parity_table_is_merged_with_the_known_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.importlib.metadata, "version", lambda package: f"{package} 9")
    path = tmp_path / "parity.json"
    known = {"resnet50": {"timm": 9e-6, "Keras": 1e-6}, "resnet18": {"timm": 1e-6}}
    path.write_text(json.dumps({"rows": known, "versions": {"timm": "1"}, "date": "2026-01-02"}))
    tables.add_parity(path, PRINTED)
    content = json.loads(path.read_text())
    assert content["rows"] == {
        "resnet18": {"timm": 1e-6},
        "resnet50": {"Keras": 5e-5, "timm": 2e-5, "torchvision": 3e-6},
        "vgg16": {"timm": 4e-6},
    }
    versions = {"Keras": "keras 9", "timm": "timm 9", "torchvision": "torchvision 9"}
    assert content["versions"] == versions
    assert content["date"] > "2026-01-02"
    found = tables.parity_table(content)
    assert "| `resnet50` | 2e-05 | 3e-06 | 5e-05 |" in found
    assert "| `vgg16` | 4e-06 |  |  |" in found


def test_a_print_without_a_parity_table_is_refused():
    with pytest.raises(ValueError, match="expected a table"):
        tables.read_parity("no table")


def test_the_page_of_results_is_the_one_that_the_command_makes():
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8")
    assert tables.fill(text, ROOT / "benchmarks" / "results") == text
