"""A run that is stopped and killed at many points ends as an uninterrupted one."""

import itertools
import os
import signal

import jax
import pytest

from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.errors import Stopped
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, metric_writer, setup, trainer

from ..trees import assert_trees_equal
from .runs import history, last_state


class Killed(BaseException):
    """Ends the process here, as far as a test can."""


def on_call(monkeypatch, where, name, number, act):
    """Calls `act` before the call with that number; returns the list of calls."""
    original, counted = getattr(where, name), itertools.count(1)
    calls = []

    def watched(*args, **kwargs):
        calls.append(next(counted))
        if calls[-1] == number:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, watched)
    return calls


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def start(make_config, tmp_path, monkeypatch):
    """Starts the run, which must raise if `act` is given; returns the lines that it logged."""
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    said = []
    monkeypatch.setattr(console, "log_info", said.append)

    def begin(where=None, name="", number=1, act=None, expected=Killed, **changes):
        said.clear()
        with monkeypatch.context() as patch:
            if where is None:
                run.train(make_config(**changes), tmp_path)
            else:
                on_call(patch, where, name, number, act)
                with pytest.raises(expected):
                    run.train(make_config(**changes), tmp_path)
        return list(said)

    return begin


@pytest.mark.full
def test_a_run_that_is_stopped_everywhere(start, trained, make_config, tmp_path):
    folder = tmp_path / "checkpoints"
    # While the images are read; between the audit and the first checkpoint.
    start(setup, "prepare_splits", 1, terminate, Stopped)
    assert not (tmp_path / "config.json").exists()
    start(setup, "prepare_splits", 1, kill)
    start(executor.JitExecutor, "train", 2, kill)
    assert not folder.exists()
    # In the head's only epoch, with another grace period, which may change at each start.
    start(executor.JitExecutor, "train", 4, terminate, Stopped, grace_seconds=60.0)
    # During its validation: the trained epoch is saved, and validated when the run resumes.
    assert "resuming from step 4" in start(executor.JitExecutor, "predict", 1, terminate, Stopped)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress().trained) == (7, True)
    assert history(tmp_path) == []
    # Between the log entry and its checkpoint, twice.
    for _ in range(2):
        assert "resuming from step 7" in start(trainer.Checkpoints, "save", 1, kill)
        assert [entry["step"] for entry in history(tmp_path)] == [7]
    # Before the log entry, after the checkpoint of the previous epoch.
    assert "resuming from step 7" in start(metric_writer.MetricWriter, "write", 2, kill)
    assert [entry["step"] for entry in history(tmp_path)] == [7]
    # As the second phase begins.
    start(trainer.Trainer, "start_next_phase", 1, kill)
    # A checkpoint that is damaged between two starts.
    start(executor.JitExecutor, "train", 9, terminate, Stopped)
    broken = folder / "16" / "state" / "manifest.ocdbt"
    size = len(broken.read_bytes())
    broken.write_bytes(broken.read_bytes()[:-1])
    said = start(evaluator, "finish", 1, terminate, Stopped)
    moved = [line for line in said if not line.startswith(("data: ", "8 classes", "left out: "))]
    assert moved[:2] == [
        f"the checkpoint {folder}/16 is corrupt: state/manifest.ocdbt has {size - 1} bytes, "
        f"expected {size}; it was moved to {folder}/broken/16",
        "resuming from step 14",
    ]
    start()  # it trains no more
    assert history(tmp_path) == history(trained)
    (progress, state), (expected_progress, expected) = (
        last_state(workdir, make_config()) for workdir in (tmp_path, trained)
    )
    assert progress == expected_progress
    assert_trees_equal(state, expected)


@pytest.mark.full
def test_a_signal_that_leaves_the_thread_in_a_trace(make_config, tmp_path, monkeypatch):
    end_epoch = trainer.Trainer.end_epoch

    def traced(self, *arguments):
        jax.jit(lambda: end_epoch(self, *arguments))()

    monkeypatch.setattr(trainer.Trainer, "end_epoch", traced)
    monkeypatch.setattr(trainer.Trainer, "validate", lambda *_: terminate())
    with pytest.raises(Stopped):
        run.train(make_config(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress().trained) == (7, True)
