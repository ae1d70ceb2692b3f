import contextlib
import json
import logging
import subprocess
import sys
import time

import pytest

from bloodjax import distributed, tracking
from bloodjax.errors import Stopped, UserError
from bloodjax.tracking import group

# Programs in place of `tracking.worker`; each gets the root folder and the tracker's name.
KEEPS = """
import json, sys
lines = []
for line in sys.stdin:
    lines.append(json.loads(line))
    if "finish" in lines[-1]:
        break
folder = lines[0]["open"]["folder"]
open(folder + "/" + sys.argv[2] + ".got", "w").write(json.dumps(lines))
print(json.dumps({"unsent": 0}), flush=True)
"""
HANGS = "import time; time.sleep(60)"
DIES = "import sys; sys.exit(3)"
IS_DOWN = """
import json, sys
for line in sys.stdin:
    if "metrics" in line:
        print(json.dumps({"problem": "ConnectionError: refused"}), flush=True)
    if "finish" in line:
        break
print(json.dumps({"unsent": 2}), flush=True)
"""


@contextlib.contextmanager
def opened(workdir, trackers=("mlflow",), seconds=5.0, stopping=lambda: 0, **options):
    values = {"project": "", "run_name": "", "tags": (), "parameters": {"a.b": (1, 2), "c": "x"}}
    with tracking.open_trackers(
        trackers, workdir, **values | options, finish_seconds=seconds, stopping=stopping
    ) as trackers:
        yield trackers


@pytest.fixture
def program(monkeypatch):
    return lambda text: monkeypatch.setattr(group, "_START", text)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "bloodjax")
    logging.getLogger("bloodjax").propagate = True
    return lambda: [record.getMessage() for record in caplog.records]


def got(workdir, name="mlflow"):
    return json.loads((workdir / "tracking" / f"{name}.got").read_text())


def test_each_tracker_gets_everything(program, tmp_path):
    program(KEEPS)
    workdir = tmp_path / "run7"
    workdir.mkdir()
    (workdir / "page.html").write_text("<p>")
    (workdir / "model").mkdir()
    (workdir / "model" / "weights").write_bytes(b"123")
    with opened(workdir, ("tensorboard", "mlflow", "wandb"), tags=("t",)) as trackers:
        trackers.log_metrics({"train/loss": 0.5}, 7)
        trackers.log_results({"evaluate/test/accuracy": 0.9}, 7)
        trackers.log_report(workdir / "page.html")
        trackers.log_report(workdir / "missing.html")
        trackers.log_model(workdir / "model")
    assert got(workdir) == got(workdir, "wandb")
    first, *rest = got(workdir)
    assert first["open"] == {
        "folder": str(workdir / "tracking"),
        "project": "",
        "run_name": "run7",
        "tags": ["t"],
        "parameters": {"a.b": "1,2", "c": "x"},
    }
    assert [next(iter(message)) for message in rest] == [
        *("metrics", "results", "report", "model", "finish")
    ]
    assert rest[0]["metrics"] == {"train/loss": 0.5}
    assert len({message["digest"] for message in rest[:-1]}) == 4
    assert rest[-1] == {"finish": "finished"}


def test_a_repeated_epoch_has_the_same_digest_and_other_figures_have_another(program, tmp_path):
    program(KEEPS)
    with opened(tmp_path) as trackers:
        trackers.log_metrics({"train/loss": 0.5, "seconds": 1.0}, 7)
        trackers.log_metrics({"train/loss": 0.5, "seconds": 2.0}, 7)
        trackers.log_metrics({"train/loss": 0.6, "seconds": 1.0}, 7)
        trackers.log_metrics({"train/loss": 0.5, "seconds": 1.0}, 14)
    digests = [message["digest"] for message in got(tmp_path)[1:-1]]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped("stopped", 15), "stopped"), (ValueError("bug"), "failed")]
)
def test_a_run_that_ends_early_says_so(program, tmp_path, error, status):
    program(KEEPS)
    with pytest.raises(type(error)), opened(tmp_path):
        raise error
    assert got(tmp_path)[-1] == {"finish": status}


def test_a_tracker_that_hangs_is_ended_in_time(program, tmp_path, lines):
    program(HANGS)
    started = time.monotonic()
    with opened(tmp_path, seconds=0.3) as trackers:
        for step in range(2 * group._MOST_WAITING):
            trackers.log_metrics({"loss": 1.0}, step)
        assert time.monotonic() - started < 2
        process = trackers._processes[0]._process
    assert time.monotonic() - started < 5
    assert process.poll() is not None
    warnings = [line for line in lines() if line.startswith("mlflow")]
    assert warnings[-1].startswith("mlflow has not taken everything in 0 s")
    assert warnings[-1].endswith("the same command sends the rest")


def test_a_signal_shortens_the_wait(program, tmp_path, monkeypatch):
    program(HANGS)
    monkeypatch.setattr(group, "_SHORT_WAIT", 0.2)
    started = time.monotonic()
    with opened(tmp_path, seconds=60.0, stopping=lambda: 15):
        pass
    assert time.monotonic() - started < 5


def test_a_tracker_whose_process_dies_is_one_line(program, tmp_path, lines):
    program(DIES)
    with opened(tmp_path) as trackers:
        process = trackers._processes[0]._process
        process.wait()
        for step in range(3):
            trackers.log_metrics({"loss": 1.0}, step)
    (line,) = [line for line in lines() if "has ended early" in line]
    assert line.startswith("mlflow has ended early; ")
    assert len([each for each in lines() if "continues without it" in each]) <= 1


def test_a_tracker_that_is_down_is_one_warning_and_a_count(program, tmp_path, lines):
    program(IS_DOWN)
    with opened(tmp_path) as trackers:
        for step in (1, 2):
            trackers.log_metrics({"loss": 1.0}, step)
    assert lines() == [
        "mlflow: ConnectionError: refused; the run continues without it",
        "mlflow lacks 2 entries; the same command sends the rest",
    ]


def test_tensorboard_alone_and_other_processes_start_none(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with opened(tmp_path, ("tensorboard",)) as trackers:
        trackers.log_metrics({"loss": 1.0}, 1)
        trackers.log_model(tmp_path / "missing")
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    with opened(tmp_path, ("mlflow",)) as trackers:
        trackers.log_metrics({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_start_is_one_warning(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with opened(tmp_path) as trackers:
        trackers.log_metrics({"loss": 1.0}, 1)
    (line,) = lines()
    assert line.startswith("mlflow: [Errno 2] No such file")


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(group.importlib.util, "find_spec", lambda name: None)
    tracking.check_installed(("tensorboard",))
    with pytest.raises(UserError) as error:
        tracking.check_installed(("tensorboard", "wandb"))
    assert str(error.value) == (
        "config.trackers has 'wandb', but the package wandb is not installed, expected pip install "
        "'bloodjax[wandb]'"
    )
