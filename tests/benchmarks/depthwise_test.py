"""Tests of benchmarks/depthwise.py, on a tiny shape."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import contenders, depthwise, depthwise_forms
from benchmarks.depthwise_forms import DIRECTIONS, FORMS, Case
from bloodjax.ops import depthwise_gpu

TINY = Case(kernel=3, stride=1, side=6, channels=4, batch=2, dtype="float32")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(depthwise, "_WINDOW_SECONDS", 1e-4)
    monkeypatch.setattr(depthwise, "_HOPELESS", 1e9)


@pytest.mark.full
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_forms_of_this_backend_agree(direction):
    pytest.importorskip("torch", reason="needs the extra [parity]")
    forms = FORMS[jax.default_backend()]
    result = depthwise.time_case(TINY, direction, forms)
    assert list(result["forms"]) == list(forms)
    for found in result["forms"].values():
        assert found["difference"] < 1e-5
        assert len(found["seconds"]) == depthwise._ROUNDS
        assert min(found["seconds"]) <= found["median"] <= max(found["seconds"])
    assert result["best"] in set(forms) - {"torch"}


def test_forms_that_fail_or_differ_are_left_out(monkeypatch):
    def prepare(form, *arguments):
        if form == "broken":
            raise NotImplementedError("no such kernel\nat all")
        timed = depthwise_forms.prepare("native", *arguments)
        if form == "wrong":
            timed.result = timed.result * np.float32(np.nan)
        return timed

    monkeypatch.setattr(depthwise, "prepare", prepare)
    result = depthwise.time_case(TINY, "forward", ("native", "broken", "wrong"))
    assert result["best"] == "native"
    assert result["forms"]["broken"] == {"error": "NotImplementedError: no such kernel"}
    assert "differs by nan" in result["forms"]["wrong"]["error"]
    assert "broken left out: NotImplementedError" in depthwise.summary(result)
    assert "| - | - | native |" in depthwise.table([result])


def measured(side, channels=4, **medians):
    case = dataclasses.asdict(Case(7, 1, side, channels, batch=2, dtype="bfloat16"))
    forms = {name: {"median": seconds} for name, seconds in medians.items()}
    return {"case": case, "direction": "forward", "forms": forms, "best": "shifted"}


def test_the_table_for_cuda_takes_what_is_faster_by_a_margin():
    results = [
        measured(24, native=1.0, shifted=0.99, pallas=2.0),
        measured(12, native=1.0, shifted=0.2, torch=0.1),
        measured(6, native=1.0, shifted=0.5, pallas=0.9),
        measured(6, channels=8, native=1.0, shifted=1.4, pallas=0.8),
        measured(3, native=2.0, pallas=1.0),
    ]
    steps = ((6, "pallas"), (12, "shifted"), (24, "native"))
    assert depthwise.cuda_forms(results) == {("forward", 7, 1, "bfloat16"): steps}
    assert depthwise.cuda_forms(results[:1]) == {}


def test_the_command_writes_and_prints(monkeypatch, capsys, tmp_path):
    flags = ["--cases=3:2:5:4,5:1:4:4", "--batch=2", "--dtypes=float32", "--seconds=0"]
    flags += ["--forms=native,shifted", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["depthwise", *flags])
    depthwise.main()
    [path] = tmp_path.glob("*/depthwise_*.json")
    content = json.loads(path.read_text())
    assert [result["direction"] for result in content["results"]] == list(DIRECTIONS)
    assert [case["kernel"] for case in content["left_out"]] == [5]
    printed = capsys.readouterr().out
    assert "| 3x3, 2, 5x5, 4 | float32 | forward |" in printed
    assert str(path) in printed


def test_what_was_timed_is_written_when_the_device_fails(monkeypatch, capsys, tmp_path):
    def time_case(case, direction, forms):
        if direction == "kernel_grad":
            raise RuntimeError("illegal memory access\nlong trace")
        return measured(6, native=1.0)

    monkeypatch.setattr(depthwise, "time_case", time_case)
    monkeypatch.setattr("sys.argv", ["depthwise", f"--out={tmp_path}"])
    with pytest.raises(SystemExit) as error:
        depthwise.main()
    assert error.value.code == "error: kernel_grad: RuntimeError: illegal memory access"
    [path] = tmp_path.glob("*/depthwise_*.json")
    assert len(json.loads(path.read_text())["results"]) == 2


@pytest.mark.parametrize("flag", ["--cases=3:1:5", "--forms=fast", "--dtypes=float16"])
def test_the_command_refuses_what_it_does_not_know(monkeypatch, flag):
    monkeypatch.setattr("sys.argv", ["depthwise", flag])
    with pytest.raises(SystemExit) as error:
        depthwise.main()
    assert error.value.code != 0


def test_contenders_set_the_variable_that_the_operation_reads():
    for form in ("shifted", "pallas"):
        assert contenders.CONTENDERS[f"bloodjax_{form}"][2][depthwise_gpu.FORCE] == form
