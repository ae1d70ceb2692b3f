"""Tests of bloodjax/profiling/recorder.py, with small runs."""

import collections
import json
import shutil

import pytest

from bloodjax import run
from bloodjax.cli import console
from bloodjax.errors import Stopped
from bloodjax.evaluation import evaluator
from bloodjax.profiling import recorder
from bloodjax.training import executor, metric_writer


@pytest.fixture
def no_evaluation(monkeypatch):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})


@pytest.fixture(scope="module")
def profiled(make_config, tmp_path_factory):
    """The workdir of a tiny run of both phases, profiled."""
    workdir = tmp_path_factory.mktemp("profiled") / "run"
    run.train(make_config(profile=True), workdir)
    return workdir


@pytest.mark.full
def test_each_phase_leaves_a_trace_and_a_table(profiled):
    entries = recorder.load(profiled)
    assert list(entries) == ["head", "finetune"]
    for phase, entry in entries.items():
        assert len(list((profiled / "profile" / phase).rglob("*.xplane.pb"))) == 1
        assert (entry["steps"], entry["note"]) == (3, "")
        assert entry["images_per_second"] == pytest.approx(16e3 / entry["ms_per_step"])
        assert sum(row["ms"] for row in entry["groups"]) == pytest.approx(entry["ms_per_step"])
        assert 0 < entry["mfu"] < 1
        assert entry["first_call_seconds"] > 0
        assert len(entry["operations"]) == 15
        assert f"{phase}: " in (profiled / "profile" / "profile.txt").read_text()
    groups = {phase: {row["group"] for row in entry["groups"]} for phase, entry in entries.items()}
    assert {"convolution, gradient", "optimiser", "idle, host"} <= groups["finetune"]
    assert "convolution, forward" in groups["head"]
    assert "convolution, gradient" not in groups["head"], "the backbone is frozen"
    assert entries["head"]["flops_per_image"] < entries["finetune"]["flops_per_image"] / 2


@pytest.mark.full
def test_the_report_shows_where_the_time_goes(profiled, trained):
    page = (profiled / "report" / "index.html").read_text("utf-8")
    assert 'id="time"' in page
    assert "convolution, gradient" in page
    assert 'id="time"' not in (trained / "report" / "index.html").read_text("utf-8")


@pytest.mark.full
def test_nothing_else_of_the_run_changes(profiled, trained):
    figures = [
        [
            (entry["train"]["loss"], entry["validation"])
            for entry in metric_writer.read_history(workdir)
        ]
        for workdir in (profiled, trained)
    ]
    assert figures[0] == figures[1]


def test_without_the_key_nothing_is_left(trained):
    assert not (trained / "profile").exists()
    assert recorder.load(trained) == {}


@pytest.mark.full
def test_a_run_that_goes_on_may_be_profiled_and_no_phase_twice(
    profiled, make_config, tmp_path, monkeypatch, no_evaluation
):
    workdir = shutil.copytree(profiled, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    entries = recorder.load(workdir)
    del entries["finetune"]
    (workdir / "profile" / "profile.json").write_text(json.dumps(entries))
    (workdir / "config.json").write_text(
        (workdir / "config.json").read_text().replace('"profile": true', '"profile": false')
    )
    measured = []
    monkeypatch.setattr(
        recorder,
        "measure",
        lambda recording, *_: measured.append(recording.name) or entries["head"],
    )
    run.train(make_config(profile=True), workdir)
    assert measured == ["finetune"]
    assert list(recorder.load(workdir)) == ["head", "finetune"]


@pytest.mark.slow
def test_a_stop_within_a_recording_leaves_nothing(
    make_config, tmp_path, monkeypatch, no_evaluation
):
    calls = []
    original = executor.JitExecutor.train

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise Stopped("stopped", 2)
        return original(self, *arguments)

    monkeypatch.setattr(executor.JitExecutor, "train", stopping)
    config = make_config(**{"profile": True, "phases.head.epochs": 0, "phases.finetune.epochs": 1})
    with pytest.raises(Stopped):
        run.train(config, tmp_path)
    assert not (tmp_path / "profile" / "finetune").exists()
    run.train(config, tmp_path)
    assert list(recorder.load(tmp_path)) == ["finetune"]


@pytest.mark.full
def test_what_fails_in_a_profile_is_a_line(make_config, tmp_path, monkeypatch, no_evaluation):
    said = []
    monkeypatch.setattr(console, "log_info", said.append)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(recorder, "measure", fail)
    config = make_config(**{"profile": True, "phases.head.epochs": 0, "phases.finetune.epochs": 1})
    run.train(config, tmp_path)
    assert said.count("no profile of finetune: OSError: no space left") == 1
    assert recorder.load(tmp_path) == {}


def test_no_call_that_compiles_another_size_of_the_phase_is_recorded(tmp_path, monkeypatch):
    phases = collections.namedtuple("Phase", ("freeze", "cached", "size"))
    calls, before_the_trace = [], []
    monkeypatch.setattr(
        recorder._Recording, "_start", lambda *_: before_the_trace.append(len(calls))
    )

    def train(*_):
        calls.append(1)
        return 0.0, 0.0

    recording = recorder._Recording("finetune", tmp_path, train, str, lambda _: None)
    for size in (64, 64, 96, 96, 96):
        recording(phases("none", False, size), 7, 0.0)
    assert before_the_trace[0] == 4


@pytest.mark.slow
def test_only_calls_of_one_size_are_recorded(make_config, tmp_path, no_evaluation):
    config = make_config(
        **{
            "profile": True,
            "parallel": "pmap",
            "steps_per_call": 3,
            "phases.head.epochs": 0,
            "phases.finetune.epochs": 2,
        }
    )
    run.train(config, tmp_path)
    entry = recorder.load(tmp_path)["finetune"]
    # An epoch has 7 steps: calls of 3, 3 and 1. The third call of 3 is the first of epoch 2.
    assert entry["steps"] == 6
    assert entry["groups"]
