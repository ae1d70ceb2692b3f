import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.data import sources
from bloodjax.errors import Stopped
from bloodjax.evaluation import classifier, evaluator, soup
from bloodjax.training import factory, metric_writer
from bloodjax.training.executor import JitExecutor
from bloodjax.training.workdir import write_variables

from ..trees import assert_trees_equal

SOUP = {
    "soup": 3,
    "phases.head.epochs": 0,
    "phases.finetune.epochs": 5,
    "phases.finetune.freeze": "none",
    "phases.finetune.learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def ended(make_config, tmp_path_factory):
    """Config, workdir and progress of a finished run without soup and evaluation."""
    config, workdir = make_config(**SOUP), tmp_path_factory.mktemp("soup") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "finish", lambda *_: {})
        run.train(config, workdir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return config, workdir, checkpoints.progress()


@pytest.fixture
def again(ended, tmp_path):
    config, workdir, progress = ended
    return config, shutil.copytree(workdir, tmp_path / "run"), progress


def leaders_variables(workdir, config, progress):
    like = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return [
            jax.device_get(checkpoints.restore_variables(step, like)) for step, _ in progress.top_k
        ]


@pytest.mark.slow
def test_the_best_epochs_stay(ended):
    _, workdir, progress = ended
    entries = metric_writer.read_history(workdir)
    by_loss = sorted(entries, key=lambda entry: entry["validation"]["loss"])
    assert progress.top_k == tuple((e["step"], e["validation"]["loss"]) for e in by_loss[:3])
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    latest_two = [entry["step"] for entry in entries[-2:]]
    before = sorted(entries[:-1], key=lambda entry: entry["validation"]["loss"])[:3]
    assert kept == {*dict(progress.top_k), *latest_two, *(entry["step"] for entry in before)}


def scored(monkeypatch, losses):
    """Makes validation return these losses, one after another."""
    left = iter(losses)
    monkeypatch.setattr(soup.metrics, "quick", lambda *_: {"loss": next(left), "accuracy": 0.5})


@pytest.mark.full
@pytest.mark.parametrize(
    ("losses", "taken"),
    [((1.0, 1.2, 0.8), (0, 2)), ((1.0, 1.0, 0.9), (0, 1, 2)), ((1.0, 0.9, 0.95), (0, 1))],
)
def test_a_soup_takes_what_makes_it_no_worse(losses, taken, again, monkeypatch):
    config, workdir, progress = again
    variables = leaders_variables(workdir, config, progress)
    with monkeypatch.context() as patch:
        scored(patch, losses)
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            soup.make(config, workdir, checkpoints, [cells()])
    content = json.loads((workdir / "soup.json").read_text())
    assert content["steps"] == [progress.top_k[i][0] for i in taken]
    assert content["chosen"] is soup.is_chosen(workdir) is True
    assert content["validation"]["best"]["loss"] == 1.0
    assert content["validation"]["soup"]["loss"] == losses[taken[-1]]
    model = bloodjax.load(workdir)
    assert model.step == progress.best_step

    def check(found, *leaves):
        expected = np.mean(np.array(leaves, np.float64), axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)

    jax.tree.map(check, model.predictor.variables, *(variables[i] for i in taken))
    assert_trees_equal(classifier.load(workdir, "epoch").predictor.variables, variables[0])


@pytest.mark.parametrize("losses", [(1.0, 1.2, 1.1), (1.0, 1.0, 1.0)])
def test_a_soup_that_is_not_better_is_left(losses, again, monkeypatch):
    config, workdir, progress = again
    with monkeypatch.context() as patch:
        scored(patch, losses)
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            soup.make(config, workdir, checkpoints, [cells()])
    assert not soup.is_chosen(workdir)
    assert not (workdir / "soup").exists()
    best = leaders_variables(workdir, config, progress)[0]
    assert_trees_equal(bloodjax.load(workdir).predictor.variables, best)


def cells():
    from bloodjax.data.synthetic import render

    return render.render_dataset(16, 32, seed=3)


def test_a_run_without_a_soup_has_none(trained):
    assert not soup.is_chosen(trained)
    assert not (trained / "soup.json").exists()


@pytest.mark.slow
def test_a_stopped_run_makes_the_same_soup(again, make_config, tmp_path, monkeypatch):
    config, workdir, _ = again
    taken, original = [], JitExecutor.train

    def counted(self, *arguments):
        taken.append(1)
        if len(taken) == 24:  # In the fourth epoch.
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JitExecutor, "train", counted)
        with pytest.raises(Stopped, match="stopped at step 24"):
            run.train(config, tmp_path / "stopped")
    results = run.train(config, tmp_path / "stopped")
    run.train(config, workdir)  # It is only evaluated, for the first time.
    found, expected = (
        json.loads((folder / "soup.json").read_text()) for folder in (tmp_path / "stopped", workdir)
    )
    assert found == expected
    assert found["validation"]["soup"]["loss"] <= found["validation"]["best"]["loss"]
    best = min(entry["validation"]["loss"] for entry in metric_writer.read_history(workdir))
    assert found["validation"]["best"]["loss"] == pytest.approx(best, rel=1e-5)
    assert results["validation"]["calibration"]["nll_before"] == pytest.approx(
        found["validation"]["soup" if found["chosen"] else "best"]["loss"], rel=1e-5
    )
    beside = results["test"].get("beside", {})
    assert ("best epoch alone" in beside) == found["chosen"]


def test_a_run_whose_best_checkpoints_are_lost_has_no_soup(again, monkeypatch):
    config, workdir, progress = again
    (workdir / "soup.json").write_text('{"chosen": true}')
    monkeypatch.setattr(Checkpoints, "progress", lambda _: progress.without(progress.needs))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        soup.make(config, workdir, checkpoints, [sources.load("synthetic:16", 32)])
    assert not soup.is_chosen(workdir)


def test_a_soup_may_be_of_an_earlier_step_than_the_last_one(again):
    config, workdir, progress = again
    executor = factory.executor(config, 8)
    (variables,) = leaders_variables(workdir, config, progress)[:1]
    for step in (15, 5):
        write_variables(
            workdir / "soup", dataclasses.replace(progress, best_step=step), variables, executor
        )
        with Checkpoints(workdir / "soup", read_only=True) as checkpoints:
            assert checkpoints.latest_step == step


def test_a_soup_needs_validation(again, make_config, monkeypatch):
    config, workdir, _ = again
    lines = []
    monkeypatch.setattr(console, "log_info", lines.append)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        soup.make(config, workdir, checkpoints, [])
    assert lines == ["no soup: it needs a validation split"]
    assert not soup.is_chosen(workdir)
