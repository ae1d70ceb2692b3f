"""Runs whose learning rates a range test finds."""

import contextlib
import os
import signal

import pytest

from bloodjax import config as config_lib
from bloodjax import run
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, lr_range_test

from ..trees import assert_trees_equal
from .runs import history, last_state


@pytest.fixture
def no_evaluation(monkeypatch):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})


@contextlib.contextmanager
def stopped_after(monkeypatch, n, message):
    """Sends this process SIGTERM at training step `n` of the body, which raises `Stopped`."""
    taken, original = [], executor.JitExecutor.train

    def counted(self, *args):
        taken.append(1)
        if len(taken) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(executor.JitExecutor, "train", counted)
        with pytest.raises(Stopped, match=message):
            yield


@pytest.mark.slow
def test_a_run_is_that_of_the_rates_that_were_found(
    make_config, tmp_path, monkeypatch, no_evaluation, caplog
):
    config, folder = make_config(learning_rate="auto"), tmp_path / "auto"
    with stopped_after(monkeypatch, 30, "stopped at step 0"):  # in the test of the head
        run.train(config, folder)
    assert lr_range_test.read(folder, "head") is None
    with stopped_after(monkeypatch, lr_range_test.STEPS + 7 + 30, "stopped at step 7"):
        run.train(config, folder)  # in the test of finetune, or in its epochs
    head = lr_range_test.file(folder, "head").read_bytes()
    run.train(config, folder)
    assert lr_range_test.file(folder, "head").read_bytes() == head
    rates = {name: lr_range_test.rate(folder, name) for name in config_lib.PHASES}
    assert len(set(rates.values())) == 2
    same = make_config(**{f"phases.{name}.learning_rate": rate for name, rate in rates.items()})
    run.train(same, tmp_path / "numbers")
    assert history(folder) == history(tmp_path / "numbers")
    (progress, state), (expected_progress, expected) = (
        last_state(workdir, same) for workdir in (folder, tmp_path / "numbers")
    )
    assert progress == expected_progress
    assert_trees_equal(state, expected)
    stored = config_lib.load_json(folder / "config.json")
    assert stored.phases.head.learning_rate == "auto"
    with pytest.raises(UserError, match="contains a run with another config"):
        run.train(same, folder)


@pytest.mark.full
def test_a_rate_that_is_lost_within_a_phase_is_one_line(
    make_config, tmp_path, monkeypatch, no_evaluation
):
    one_phase = {"phases.head.epochs": 0, "phases.finetune.epochs": 1}
    config = make_config(**{"phases.finetune.learning_rate": "auto"}, **one_phase)
    lr_range_test.write(
        tmp_path, lr_range_test.find("finetune", "adamw", [float(n) for n in range(100, 0, -1)])
    )
    with stopped_after(monkeypatch, 3, "stopped at step 3"):
        run.train(config, tmp_path)
    path = lr_range_test.file(tmp_path, "finetune")
    path.unlink()
    with pytest.raises(UserError) as error:
        run.train(config, tmp_path)
    assert str(error.value) == (
        f"{path}: is missing, expected the learning rate that the run has found and trains with"
    )
