"""A run whose images stream, stopped and gone on with, beside one whose stay on the device."""

import logging
import os
import signal
import threading
import time

import jax
import pytest

from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, factory, metric_writer

from ..trees import assert_trees_equal


def last_variables(workdir, config):
    shapes = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step == 21
        return jax.device_get(checkpoints.restore_variables(21, shapes))


@pytest.mark.full
def test_a_streamed_run_that_was_stopped_ends_as_one_on_the_device(
    trained, make_config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    caplog.set_level(logging.INFO, "bloodjax")
    config = make_config(**{"data.on_device": "never"})
    taken, original = [], executor.JitExecutor.train

    def counted(self, phase, steps, state, data, order, class_weights):
        assert order is None  # the batches are handed in
        taken.append(data)
        if len(taken) == 17:  # in the middle of an epoch
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, phase, steps, state, data, order, class_weights)

    monkeypatch.setattr(executor.JitExecutor, "train", counted)
    threads = set(threading.enumerate())
    with pytest.raises(Stopped, match="stopped at step 17;"):
        run.train(config, tmp_path)
    deadline = time.monotonic() + 10
    while left := [t for t in set(threading.enumerate()) - threads if "grain" in t.name]:
        assert time.monotonic() < deadline, left
    assert "the training images stream from the host" in caplog.messages
    run.train(config, tmp_path)
    assert len(taken) == 21

    found, expected = last_variables(tmp_path, config), last_variables(trained, config)
    assert_trees_equal(found, expected)
    for one, other in zip(
        metric_writer.read_history(tmp_path), metric_writer.read_history(trained), strict=True
    ):
        assert one["validation"] == other["validation"]
        assert one["train"]["loss"] == other["train"]["loss"]


def test_pictures_that_must_stay_on_the_device_and_cannot(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("bloodjax.training.loader.device_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"config\.data\.on_device is always, but"):
        run.train(make_config(**{"data.on_device": "always"}), tmp_path)
    assert not (tmp_path / "config.json").exists()
