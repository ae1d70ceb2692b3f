"""Tests of benchmarks/tables.py."""

import json

import pytest

from benchmarks import tables


def result(batch, median, **ratios):
    return {
        "task": {"kind": "train", "network": "resnet_50", "batch": batch},
        "contenders": {"bloodjax": {"median": median}},
        "ratios": {
            name: {"median": m, "low": m - 0.1, "high": m + 0.1} for name, m in ratios.items()
        },
    }


def test_the_fastest_peer_of_a_kind_is_shown():
    found = tables.table([result(16, 0.5, timm=0.5, timm_channels_last=0.75), result(64, 2.0)])
    header, _, first, second = found.splitlines()
    assert header == "| task | bloodjax | images/s | time / timm's |"
    assert first.endswith("| 500 ms | 32 | 0.75 (0.65 to 0.85) |")
    assert second.endswith("| 2000 ms | 32 | - |")


def test_a_start_is_told_in_seconds():
    start = result(16, 12.25)
    start["task"]["kind"] = "start"
    start["contenders"]["bloodjax"]["cold_seconds"] = [50.0, 40.0, 60.0]
    row = tables.table([start]).splitlines()[-1]
    assert row.endswith("| 12.2 s; 50.0 s where nothing is compiled | - |")


def test_the_newest_result_of_each_task_fills_the_readme(tmp_path):
    folder = tmp_path / "a_device"
    folder.mkdir()
    for name, rows in (("1", [result(16, 9.0), result(64, 8.0)]), ("2", [result(16, 4.0)])):
        (folder / f"{name}.json").write_text(json.dumps({"device": "A device", "results": rows}))
    text = f"before {tables._BEGIN} old {tables._END} after"
    filled = tables.fill(text, tmp_path)
    assert filled.startswith("before ")
    assert filled.endswith(" after")
    assert "A device:" in filled
    assert "4000 ms" in filled
    assert "8000 ms" in filled
    assert "9000 ms" not in filled
    assert " old " not in filled
    assert tables.fill(filled, tmp_path) == filled


def test_a_readme_without_markers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected <!-- benchmarks"):
        tables.fill("nothing", tmp_path)
