"""One run that is stopped in every way there is ends as the one that was left alone."""

import itertools
import os
import signal

import jax
import numpy as np
import pytest

from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.errors import Stopped
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, metric_writer, setup, trainer

from .runs import history, last_state


class Killed(BaseException):
    """Ends the process here, as far as a test can."""


def on_call(monkeypatch, where, name, number, act):
    """Has `act` come before the call of that number; returns the count of calls."""
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
    """Starts the run, which is to end in an exception if `act` is given; returns what it said."""
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


def test_a_run_that_is_stopped_everywhere(start, trained, make_config, tmp_path):
    folder = tmp_path / "checkpoints"
    # While the data are read; between the audit and the first checkpoint.
    start(setup, "prepare", 1, terminate, Stopped)
    assert not (tmp_path / "config.json").exists()
    start(setup, "prepare", 1, kill)
    start(executor.JitExecutor, "train", 2, kill)
    assert not folder.exists()
    # In the head's only epoch, with a time of grace that may be another at each start.
    start(executor.JitExecutor, "train", 4, terminate, Stopped, grace_seconds=60.0)
    # In its validation: what is trained is saved, and validated when the run goes on.
    assert "going on from step 4" in start(executor.JitExecutor, "predict", 1, terminate, Stopped)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress().trained) == (7, True)
    assert history(tmp_path) == []
    # Between the entry of the log and the checkpoint that goes with it, twice.
    for _ in range(2):
        assert "going on from step 7" in start(trainer.Checkpoints, "save", 1, kill)
        assert [entry["step"] for entry in history(tmp_path)] == [7]
    # Before the entry, after the checkpoint of the epoch before.
    assert "going on from step 7" in start(metric_writer.MetricWriter, "write", 2, kill)
    assert [entry["step"] for entry in history(tmp_path)] == [7]
    # As the second phase begins.
    start(trainer.Trainer, "next_phase", 1, kill)
    # A checkpoint that breaks while the run stands still.
    start(executor.JitExecutor, "train", 9, terminate, Stopped)
    broken = folder / "16" / "state" / "manifest.ocdbt"
    size = len(broken.read_bytes())
    broken.write_bytes(broken.read_bytes()[:-1])
    said = start(evaluator, "finish", 1, terminate, Stopped)
    assert said[:2] == [
        f"the checkpoint {folder}/16 is broken: state/manifest.ocdbt has {size - 1} bytes, "
        f"expected {size}; it is now in {folder}/broken/16",
        "going on from step 14",
    ]
    start()  # it trains no more
    assert history(tmp_path) == history(trained)
    (progress, state), (expected_progress, expected) = (
        last_state(workdir, make_config()) for workdir in (tmp_path, trained)
    )
    assert progress == expected_progress
    jax.tree.map(np.testing.assert_array_equal, state, expected)
