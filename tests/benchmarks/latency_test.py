"""Tests of benchmarks/latency.py, with stand-ins for the contenders."""

import json

import pytest

from benchmarks import latency, tables

SECONDS = {"bloodjax": 0.5, "timm": 2.0, "timm_compiled": 1.0, "onnxruntime": 0.25}


class StandIn:
    """A contender with a known latency, of which each third call takes twice as long."""

    def __init__(self, name):
        self.name, self.taken, self.closed = name, 0, False

    def ask(self, task=None, calls=None):
        if self.name == "broken":
            return {"error": "ImportError: not here"}
        if task:
            self.batch = task["batch"]
            return {"seconds": 3.0, "about": {"device": "a chip", "platform": "tpu"}}
        self.taken += calls
        return {"each": [SECONDS[self.name] * self.batch * (1 + i % 3 // 2) for i in range(calls)]}

    def close(self):
        self.closed = True


@pytest.fixture
def results():
    made = []

    def start(name):
        made.append(StandIn(name))
        return made[-1]

    found = latency.compare(
        "resnet50", ["bloodjax", "broken", *list(SECONDS)[1:]], 0.0, start=start
    )
    assert all(process.closed for process in made)
    return found


def test_medians_worst_calls_and_ratios(results):
    one, views, many = results
    assert [r["task"]["batch"] for r in results] == [1, 1, 64]
    assert one["contenders"]["bloodjax"]["median"] == 0.5
    assert many["contenders"]["bloodjax"]["median"] == 32.0
    assert one["ratios"]["timm"] == {"median": 0.25, "low": 0.25, "high": 0.25}
    assert one["ratios"]["onnxruntime"]["median"] == 2.0
    assert "timm_compiled" not in views["contenders"]
    assert one["contenders"]["broken"] == {"error": "ImportError: not here"}


def test_a_round_has_several_calls_of_a_fast_contender():
    process = StandIn("onnxruntime")
    SECONDS["onnxruntime"], before = 0.01, SECONDS["onnxruntime"]
    try:
        first = latency.compare("resnet50", ["onnxruntime"], 0.0, start=lambda _: process)[0]
    finally:
        SECONDS["onnxruntime"] = before
    found = first["contenders"]["onnxruntime"]
    assert found["calls"] == 90, "three rounds of thirty calls"
    assert found["worst"] == 2 * found["median"]


def test_the_table_names_the_fastest_other(results, tmp_path):
    assert "left out: ImportError: not here" in latency.summary(results[0])
    folder = tmp_path / "a_chip"
    folder.mkdir()
    content = {"device": "a chip", "date": "2026-01-02", "results": results}
    (folder / "latency_1.json").write_text(json.dumps(content))
    made = ": made by python -m benchmarks.tables -->"
    names = [*tables.TABLES, "compiled", "parity"]
    page = "\n".join(f"<!-- {name}{made}<!-- /{name} -->" for name in names)
    rows = [line for line in tables.fill(page, tmp_path).splitlines() if "resnet50" in line]
    assert rows[0] == (
        "| resnet50 | 1 image | 500.0 ms | 500.0 ms | 2 | onnxruntime | 250.0 ms | 250.0 ms | "
        "2.00 (2.00 to 2.00) | 2026-01-02 |"
    )
    assert rows[1].startswith("| resnet50 | 1 image, eight views |")
    assert rows[2].startswith("| resnet50 | 64 images | 32000.0 ms |")
