"""Tests of benchmarks/plan_memory.py, but for the device."""

import json

import pytest

from benchmarks import plan_memory


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command with a plan and a device's memory that are given."""

    def call(stats, *flags):
        seen = []
        plan = {
            "phases": {"head": {"peak_bytes": 10**9}, "finetune": {"peak_bytes": 3 * 10**9}},
            "evaluation": None,
            "memory_bytes": 8 * 10**9,
        }
        train = {"kind": "A Device", "stats": stats}
        monkeypatch.setattr(plan_memory, "plan", lambda *given: seen.append(given[:3]) or plan)
        monkeypatch.setattr(plan_memory, "train", lambda *given: seen.append(given[:2]) or train)
        monkeypatch.setattr("sys.argv", ["plan_memory", f"--out={tmp_path}", *flags])
        plan_memory.main()
        return seen

    return call


def test_the_plan_is_held_against_the_device(call, tmp_path, capsys):
    seen = call({"peak_bytes_in_use": 2 * 10**9}, "--device=h200", "--config.batch_size=8")
    assert seen == [
        ("quickstart", ["batch_size=8"]),
        ("h200", "quickstart", ["batch_size=8"]),
    ]
    assert "planned 3.00 GB, measured 2.00 GB, ratio 1.50" in capsys.readouterr().out
    (path,) = (tmp_path / "a_device").iterdir()
    found = json.loads(path.read_text("utf-8"))
    assert (found["machine"], found["ratio"], found["limit_bytes"]) == ("h200", 1.5, 8e9)


def test_a_device_that_does_not_report_its_memory_is_named(call):
    with pytest.raises(SystemExit, match="A Device does not report its memory"):
        call({}, "--device=h200")


def test_an_unknown_flag_is_refused(call):
    with pytest.raises(SystemExit):
        call({}, "--device=h200", "--batch=8")
