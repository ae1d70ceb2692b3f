"""Whole runs that keep an average of their weights; the average itself is tested with the state."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.errors import Stopped
from bloodjax.evaluation import classifier, evaluator
from bloodjax.training import factory, metric_writer, trainer
from bloodjax.training.executor import JitExecutor

from ..trees import assert_trees_equal

# Under class weights (the default), with images that are mixed: all of it must go on bit for bit.
EMA = {
    "ema": 0.9,
    "augment": "d4|brightness(0.5)|mixup(0.4, p=0.4)|cutmix(p=0.4)",
    "phases.finetune.freeze": "none",
    "phases.finetune.learning_rate": 1e-2,
}


def variables_of(workdir, config, step=None, ema=False):
    like = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = step or checkpoints.latest_step
        return jax.device_get(checkpoints.restore_variables(step, like, ema=ema))


@pytest.fixture(scope="module")
def averaged(make_config, tmp_path_factory):
    """A finished run: its config, workdir, lines, and the state its second phase began with."""
    workdir, starts, said = tmp_path_factory.mktemp("ema"), [], []

    class Watched(trainer.Trainer):
        def start_next_phase(self, progress):
            progress = super().start_next_phase(progress)
            starts.append(jax.device_get(self.state))
            return progress

    config = make_config(**EMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", Watched)
        patch.setattr(console, "log_info", said.append)
        run.train(config, workdir)
    return config, workdir, said, starts[0]


@pytest.mark.full
def test_the_average_is_validated_beside_the_weights_as_trained(averaged):
    _, workdir, said, _ = averaged
    entries = metric_writer.read_history(workdir)
    lines = [line for line in said if line.startswith("epoch ")]
    for entry, line in zip(entries, lines, strict=True):
        assert entry["validation"]["loss"] != entry["validation_raw"]["loss"]
        accuracies = [entry[key]["accuracy"] for key in ("validation", "validation_raw")]
        expected = "accuracy {:.4f} (of the raw weights {:.4f})".format(*accuracies)
        assert expected in line


@pytest.mark.full
def test_the_best_average_is_kept_loaded_and_evaluated(averaged):
    config, workdir, said, _ = averaged
    entries = metric_writer.read_history(workdir)
    best = min(entries, key=lambda entry: entry["validation"]["loss"])
    model, raw = bloodjax.load(workdir), classifier.load(workdir, "raw")
    assert model.step == raw.step == best["step"]
    assert_trees_equal(
        model.predictor.variables, variables_of(workdir, config, best["step"], ema=True)
    )
    assert_trees_equal(raw.predictor.variables, variables_of(workdir, config, best["step"]))
    result = json.loads((workdir / "evaluate/validation/metrics.json").read_text())
    before = result["calibration"]["nll_before"]
    assert before == pytest.approx(best["validation"]["loss"], rel=1e-5)
    beside = result["beside"]["raw weights"]
    assert beside == pytest.approx(best["validation_raw"], rel=1e-5)
    (line,) = [line for line in said if line.startswith("validation: accuracy")]
    assert line.endswith(f"; raw weights {beside['accuracy']:.4f}")


@pytest.mark.full
def test_the_next_phase_starts_from_the_average(averaged):
    *_, start = averaged
    assert_trees_equal(start.ema.variables, start.variables)
    assert (start.ema.count, start.step) == (0, 7)


@pytest.mark.full
def test_what_is_frozen_stays_bit_identical_in_the_average(averaged):
    config, _, _, start = averaged
    drawn = jax.device_get(factory.variables(config, 8))
    for kind in ("params", "batch_stats"):
        assert_trees_equal(start.ema.variables[kind]["backbone"], drawn[kind]["backbone"])
    assert np.any(
        start.ema.params["head"]["logits"]["kernel"] != drawn["params"]["head"]["logits"]["kernel"]
    )


@pytest.mark.full
@pytest.mark.parametrize("at", [3, 17])
@pytest.mark.full
def test_a_stopped_run_goes_on_as_if_it_had_not_been(averaged, at, tmp_path, monkeypatch):
    config, workdir, *_ = averaged
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    taken, original = [], JitExecutor.train

    def counted(self, *arguments):
        taken.append(1)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JitExecutor, "train", counted)
        with pytest.raises(Stopped, match=f"stopped at step {at};"):
            run.train(config, tmp_path)
    run.train(config, tmp_path)
    for ema in (False, True):
        assert_trees_equal(
            variables_of(tmp_path, config, 21, ema), variables_of(workdir, config, 21, ema)
        )
    kept = ("step", "validation", "validation_raw")
    found, expected = (
        [[entry[key] for key in kept] for entry in metric_writer.read_history(folder)]
        for folder in (tmp_path, workdir)
    )
    assert found == expected


@pytest.mark.full
def test_without_validation_the_last_average_is_loaded(make_config, tmp_path):
    config = make_config(
        **EMA,
        **{"data.validation": "0", "data.test": "0", "phases.head.epochs": 0},
        **{"phases.finetune.epochs": 1},
    )
    run.train(config, tmp_path)
    assert "validation_raw" not in metric_writer.read_history(tmp_path)[0]
    model = bloodjax.load(tmp_path)
    assert_trees_equal(model.predictor.variables, variables_of(tmp_path, config, ema=True))
    apart = jax.tree.map(np.array_equal, model.predictor.variables, variables_of(tmp_path, config))
    assert not all(jax.tree.leaves(apart))
