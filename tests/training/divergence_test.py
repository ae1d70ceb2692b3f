"""Divergence and rollback, alone and in whole runs with bad steps."""

import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Metrics
from bloodjax.cli import console
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import evaluator
from bloodjax.training import divergence, factory, metric_writer, optim
from bloodjax.training.divergence import Diverged, Divergence
from bloodjax.training.executor import JitExecutor

from ..trees import assert_trees_equal

# An epoch of seven steps each, after which there is a checkpoint.
TWO_EPOCHS = {
    "phases.head.epochs": 0,
    "phases.finetune.epochs": 2,
    "divergence.skip": 2,
    "divergence.factor": 0.25,
}


class Kept(Checkpoints):
    """Checkpoints by their steps alone."""

    directory = pathlib.Path("run/checkpoints")

    def __init__(self, *steps):
        self.steps = list(steps)

    def latest_before(self, step):
        return max((kept for kept in self.steps if kept < step), default=None)

    def drop_after(self, step):
        self.steps = [kept for kept in self.steps if step is not None and kept <= step]


def watch(workdir, *checkpoints, **options):
    config = config_lib.defaults()
    config.batch_size = 16
    config.divergence.update({"skip": 2, "rollbacks": 2, "factor": 0.5} | options)
    return Divergence(config, workdir, Kept(*checkpoints), 7)


def sums(taken, bad_step=-1):
    """Of an epoch so far, in which so many steps were taken."""
    numbers = (jnp.float32(taken * number) for number in (8, 4, 16))
    return Metrics(*numbers, jnp.int32(bad_step))


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(console, "log_info", lines.append)
    return lines


def test_a_look_counts_and_says_what_was_skipped(tmp_path, said):
    seen = watch(tmp_path)
    assert seen.sync_metrics(sums(3), 10) == {"loss": 0.5, "accuracy": 0.25}
    assert (seen.skipped, said) == (0, [])
    seen.sync_metrics(sums(3, 10), 12)
    seen.sync_metrics(sums(4), 13)
    assert seen.skipped == 2
    assert len(said) == 1
    assert said[0].startswith("step 12: 2 of this epoch's 5 steps skipped")
    assert np.isnan(seen.sync_metrics(sums(0, 14), 16)["loss"])
    assert seen.skipped == 2
    # The next epoch has as many, which are others.
    assert said[1].startswith("step 16: 2 of this epoch's 2 steps skipped")


def test_too_many_in_a_row_or_a_whole_epoch_is_a_divergence(tmp_path, said):
    seen = watch(tmp_path)
    seen.sync_metrics(sums(5, 12), 14)
    with pytest.raises(Diverged, match="not finite at step 13") as found:
        seen.sync_metrics(sums(0, 12), 15)
    assert found.value.step == 12
    patient = watch(tmp_path, skip=20)
    patient.sync_metrics(sums(0, 5), 13)
    with pytest.raises(Diverged):
        patient.sync_metrics(sums(0, 5), 14)


def test_predictions_that_are_not_finite_are_one_too(tmp_path, said):
    watch(tmp_path).check(np.ones((2, 3)), 14)
    seen = watch(tmp_path)
    with pytest.raises(Diverged, match="at step 15"):
        seen.check(np.array([[1.0, np.nan]]), 14)
    seen.sync_metrics(sums(5, 12), 14)
    with pytest.raises(Diverged, match="at step 13"):
        seen.check(np.array([[1.0, np.nan]]), 14)


def test_it_goes_back_as_often_as_it_may(tmp_path, said):
    seen = watch(tmp_path, 7, 14, 16)
    assert seen.lr_scale == 1
    # The weights at step 14 are those that made the next step fail.
    seen.rollback(Diverged(14), 19)
    assert seen._checkpoints.steps == [7]
    assert seen.lr_scale == 0.5
    assert "rolling back to the checkpoint of step 7 with 0.5 times the learning rate" in said[0]
    again = watch(tmp_path)
    assert again.rollbacks == seen.rollbacks
    again.rollback(Diverged(3), 6)
    assert again.lr_scale == 0.25
    assert "rolling back to the run's start with 0.25 times" in said[1]
    assert [(e["step"], e["from"], e["rate"]) for e in again.rollbacks] == [
        *((7, 19, 0.5), (0, 6, 0.25))
    ]
    message = (
        r"^the loss or its gradient is not finite at step 13; the last good checkpoint is of step "
        r"7 in run/checkpoints; expected a finite loss: lower the learning_rate, in a new "
        r"--workdir$"
    )
    with pytest.raises(UserError, match=message):
        watch(tmp_path, 7).rollback(Diverged(12), 15)
    with pytest.raises(UserError, match="there is no checkpoint"):
        watch(tmp_path / "other", rollbacks=0).rollback(Diverged(12), 15)


def test_the_log_gets_what_it_lacks(tmp_path, said):
    seen = watch(tmp_path, 7)
    seen.rollback(Diverged(8), 11)
    for _ in range(2):
        with metric_writer.MetricWriter(tmp_path, 7) as log:
            seen.log_rollbacks(log, tmp_path)
            seen.log_skipped(log, 7)
    assert metric_writer.read_history(tmp_path) == seen.rollbacks
    seen.sync_metrics(sums(5), 14)
    with metric_writer.MetricWriter(tmp_path, 14) as log:
        seen.log_skipped(log, 14)
    skipped = {"event": "skipped", "step": 14, "skipped": 2}
    assert metric_writer.read_history(tmp_path, "skipped") == [skipped]


@pytest.mark.parametrize("content", ["[", "{}", "[3]"])
def test_a_record_that_is_none(content, tmp_path):
    (tmp_path / divergence.FILE).write_text(content)
    with pytest.raises(UserError, match=r"rollbacks\.json: is damaged"):
        watch(tmp_path)


def spoil(patch, bad, stop_at=0):
    """Makes the calls of these numbers go wrong, and sends a signal before one of them."""
    calls, original = [], JitExecutor.train

    def spoiled(self, phase, steps, state, data, order, class_weights):
        calls.append(1)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) in bad:
            class_weights = self.replicate(np.full(8, np.nan, np.float32))
        return original(self, phase, steps, state, data, order, class_weights)

    patch.setattr(JitExecutor, "train", spoiled)


def train(config, workdir, bad=(), stop_at=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "finish", lambda *_: {})
        spoil(patch, bad, stop_at)
        run.train(config, workdir)


def checkpoint(workdir, config):
    """RunProgress and variables of the last one, and the steps of all."""
    like = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        variables = jax.device_get(checkpoints.restore_variables(step, like))
        return step, checkpoints.progress(), variables


def history(workdir):
    entries = metric_writer.read_history(workdir)
    for entry in entries:
        entry.pop("seconds", None)
        entry.get("train", {}).pop("images_per_second", None)
    return entries


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(**TWO_EPOCHS)


@pytest.fixture(scope="module")
def gone_back(config, tmp_path_factory):
    """A run whose steps 9 and 11 to 13 fail at first."""
    workdir = tmp_path_factory.mktemp("gone_back")
    train(config, workdir, bad=(9, 11, 12, 13))
    return workdir


@pytest.mark.full
def test_a_run_skips_goes_back_and_ends_well(config, gone_back):
    entries = history(gone_back)
    assert [(e["event"], e["step"]) for e in entries] == [
        *(("epoch", 7), ("rollback", 7), ("epoch", 14))
    ]
    assert entries[1]["bad_step"] == 11
    assert entries[1]["rate"] == 0.25
    last = optim.phase_schedule(config.phases.finetune, 7)(13)
    np.testing.assert_allclose(entries[2]["learning_rate"], 0.25 * float(last), rtol=1e-6)
    step, progress, variables = checkpoint(gone_back, config)
    assert (step, progress.phase_epochs) == (14, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.full
def test_it_ends_the_same_after_a_stop_and_a_kill_right_after_the_rollback(
    config, gone_back, tmp_path, monkeypatch
):
    with pytest.raises(Stopped, match="stopped at step 12"):  # in the midst of what is skipped
        train(config, tmp_path, bad=(9, 11, 12, 13), stop_at=12)
    steps = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert steps == {"7", "12"}

    def killed(*_):
        raise KeyboardInterrupt

    # The step that makes it one too many, after which the run is killed.
    with monkeypatch.context() as patch:
        patch.setattr(metric_writer.MetricWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, bad=(1,))
    assert len(json.loads((tmp_path / divergence.FILE).read_text())) == 1
    train(config, tmp_path)
    entries, expected = history(tmp_path), history(gone_back)
    for entry in (entries[1], expected[1]):
        del entry["from"]  # where the host looked
    assert entries == expected
    assert_trees_equal(checkpoint(tmp_path, config), checkpoint(gone_back, config))


@pytest.mark.slow
def test_a_few_steps_that_go_wrong_are_left_out_and_the_report_is_right(make_config, tmp_path):
    config = make_config(**TWO_EPOCHS)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, (2, 9, 10))
        run.train(config, tmp_path)
    entries = metric_writer.read_history(tmp_path)
    assert [(e["event"], e["step"], e.get("skipped")) for e in entries] == [
        *(("skipped", 7, 1), ("epoch", 7, None), ("skipped", 14, 2), ("epoch", 14, None))
    ]
    assert all(0 < e["train"]["loss"] < 5 for e in entries if e["event"] == "epoch")
    assert bloodjax.load(tmp_path).step in (7, 14)
    page = (tmp_path / "report/index.html").read_text("utf-8")
    assert "loss over 2 epochs" in page
    assert not (tmp_path / divergence.FILE).exists()


@pytest.mark.full
def test_from_its_start_a_run_that_really_diverges_comes_to_an_end(make_config, tmp_path):
    # The second rate, of 1e-3, is one that can be trained with.
    changes = {"phases.finetune.learning_rate": 1e30, "phases.finetune.clip_norm": 0.0}
    changes |= {"phases.finetune.schedule.warmup": 0.0, "divergence.factor": 1e-33}
    config = make_config(**TWO_EPOCHS | {"phases.finetune.epochs": 1} | changes)
    train(config, tmp_path)
    entries = history(tmp_path)
    assert [(e["event"], e["step"]) for e in entries] == [("rollback", 0), ("epoch", 7)]
    assert np.isfinite(entries[-1]["validation"]["loss"])


@pytest.mark.full
def test_a_run_that_diverges_for_good_ends_in_one_line(make_config, tmp_path):
    # After five skipped steps the epoch ends, with weights that predict nothing finite.
    config = make_config(
        **{"phases.finetune.learning_rate": 1e30, "phases.finetune.clip_norm": 0.0},
        **{"divergence.skip": 5, "divergence.rollbacks": 0},
    )
    message = (
        r"the loss or its gradient is not finite at step (9|10|11); the last good checkpoint is of "
        rf"step 7 in {tmp_path}/checkpoints; expected .* learning_rate"
    )
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    step, _, variables = checkpoint(tmp_path, config)
    assert step == 7
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
    assert [entry["step"] for entry in metric_writer.read_history(tmp_path)] == [7]
