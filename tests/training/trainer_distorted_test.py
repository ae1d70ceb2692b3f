"""Whole runs with a distorted validation part."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from bloodjax import metrics, run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.errors import Stopped
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, factory, metric_writer
from bloodjax.training.corrupted_splits import with_distorted
from bloodjax.training.input_pipeline import prepare_splits

from ..trees import assert_trees_equal

SHORT = {
    "data.train": "synthetic:80",
    "data.validation_distortion": "all:1-5",
    "early_stopping.set": "validation_distorted",
    "early_stopping.metric": "f1_macro",
    "phases.head.epochs": 1,
    "phases.finetune.epochs": 2,
    "evaluation.bootstrap": 5,
}


@pytest.fixture(scope="module")
def distorted_run(tmp_path_factory, make_config):
    workdir = tmp_path_factory.mktemp("distorted") / "run"
    config = make_config(**SHORT)
    return config, workdir, run.train(config, workdir)


def numbers(workdir):
    entries = metric_writer.read_history(workdir)
    for entry in entries:
        del entry["seconds"], entry["train"]["images_per_second"]
    return entries


def variables(workdir, config):
    like = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        progress = checkpoints.progress()
        return progress, jax.device_get(checkpoints.restore_variables(step, like))


@pytest.mark.full
def test_both_sets_are_logged_evaluated_and_reported(distorted_run):
    _, workdir, results = distorted_run
    sets = ["test", "test_distorted", "validation", "validation_distorted"]
    assert list(results) == sets
    for name in sets:
        stored = json.loads((workdir / "evaluate" / name / "metrics.json").read_text())
        assert stored == results[name]
    for entry in metric_writer.read_history(workdir):
        assert entry["validation"].keys() == entry["validation_distorted"].keys()
        assert entry["validation"] != entry["validation_distorted"]
    page = (workdir / "report/index.html").read_text(encoding="utf-8")
    assert all(name in page for name in sets)
    events = b"".join(p.read_bytes() for p in (workdir / "tensorboard").iterdir())
    assert b"validation_distorted/loss" in events


def test_the_best_checkpoint_is_the_best_of_the_set_and_metric(distorted_run):
    config, workdir, results = distorted_run
    entries = metric_writer.read_history(workdir)
    values = [entry["validation_distorted"]["f1_macro"] for entry in entries]
    progress, _ = variables(workdir, config)
    best = int(np.argmax(values))
    assert (progress.best, progress.best_step) == (values[best], entries[best]["step"])
    assert results["validation_distorted"]["f1_macro"] == pytest.approx(values[best], abs=1e-6)


@pytest.mark.full
def test_another_set_and_metric_judge_otherwise(distorted_run, make_config, tmp_path, monkeypatch):
    """Scores are replaced by figures that rise on one set and fall on the other."""
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    calls = []

    def rising_and_falling(probabilities, labels):
        epoch, distorted = divmod(len(calls), 2)
        calls.append(1)
        value = float(-2 * epoch if distorted else epoch)
        return dict.fromkeys(("loss", "accuracy", "balanced_accuracy", "f1_macro", "ece"), value)

    for name, metric, best in (
        ("validation", "accuracy", 3),
        ("validation_distorted", "balanced_accuracy", 1),
        ("both", "loss", 3),
    ):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "quick", rising_and_falling)
            config = make_config(
                **SHORT | {"early_stopping.set": name, "early_stopping.metric": metric}
            )
            workdir = tmp_path / f"{name}-{metric}"
            run.train(config, workdir)
        progress, _ = variables(workdir, config)
        steps = [entry["step"] for entry in metric_writer.read_history(workdir)]
        assert progress.best_step == steps[best - 1], (name, metric)


@pytest.mark.full
def test_a_stopped_run_goes_on_as_if_it_had_not_been(distorted_run, tmp_path, monkeypatch):
    config, workdir, _ = distorted_run
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    with monkeypatch.context() as patch:
        taken, original = [], executor.JitExecutor.train

        def counted(self, *arguments):
            taken.append(1)
            if len(taken) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *arguments)

        patch.setattr(executor.JitExecutor, "train", counted)
        with pytest.raises(Stopped):
            run.train(config, tmp_path)
    run.train(config, tmp_path)
    assert numbers(tmp_path) == numbers(workdir)
    (progress, found), (expected_progress, expected) = (
        variables(path, config) for path in (tmp_path, workdir)
    )
    assert progress == expected_progress
    assert_trees_equal(found, expected)


@pytest.mark.full
def test_training_is_that_of_a_run_without_the_set(
    distorted_run, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    config, _, _ = distorted_run
    without = {"data.validation_distortion": "", "early_stopping.set": "validation"}
    # One phase's epochs do not depend on which of them is best.
    one_phase = {"phases.head.epochs": 0, "phases.finetune.epochs": 2}
    for name, changes in (("with", {}), ("without", without)):
        run.train(make_config(**SHORT | one_phase | changes), tmp_path / name)
    (_, found), (_, expected) = (variables(tmp_path / n, config) for n in ("with", "without"))
    assert_trees_equal(found, expected)
    assert "validation_distorted" not in metric_writer.read_history(tmp_path / "without")[0]


@pytest.mark.full
def test_a_resumed_run_s_sets_are_the_first_ones(distorted_run):
    config, workdir, _ = distorted_run
    one, other = (
        with_distorted(config, prepare_splits(config, workdir, resumes=True)) for _ in "ab"
    )
    np.testing.assert_array_equal(
        one.validation_distorted.images, other.validation_distorted.images
    )
    assert (one.validation_distorted.images != one.validation.images).any()


def test_the_progress_line_has_both():
    figures = {"loss": 0.5, "accuracy": 0.75}
    entry = {
        "epoch": 3,
        "phase": "head",
        "validation": figures,
        "train": {"loss": 1, "accuracy": 0, "images_per_second": 9},
        "validation_distorted": {"loss": 1.5, "accuracy": 0.25},
    }
    assert metric_writer.epoch_line(entry) == (
        "epoch 3 (head): loss 1.0000, accuracy 0.0000; validation loss 0.5000, accuracy 0.7500; "
        "distorted loss 1.5000, accuracy 0.2500; 9.0 images/s"
    )
