"""Whole runs under options of the training step, without evaluation."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import evaluator
from bloodjax.training import distillation, factory
from bloodjax.training.executor import JitExecutor

from ..trees import assert_trees_equal
from .runs import history

HEAD_ALONE = {
    "data.train": "synthetic:60",
    "data.validation": "0",
    "data.test": "0",
    "phases.head.epochs": 2,
    "phases.finetune.epochs": 0,
}


@pytest.fixture(autouse=True)
def _no_evaluation(monkeypatch):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})


def last_variables(workdir, config):
    like = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        return step, jax.device_get(checkpoints.restore_variables(step, like))


@pytest.mark.slow
def test_a_head_on_cached_features_ends_as_on_pictures_and_after_a_stop(
    make_config, tmp_path, monkeypatch
):
    images = make_config(**HEAD_ALONE, **{"phases.head.cache_features": "never"})
    run.train(images, tmp_path / "pictures")
    config = make_config(**HEAD_ALONE, **{"phases.head.cache_features": "always"})
    run.train(config, tmp_path / "cached")
    with monkeypatch.context() as patch:
        taken, original = [], JitExecutor.train

        def counted(self, *arguments):
            taken.append(1)
            if len(taken) == 5:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *arguments)

        patch.setattr(JitExecutor, "train", counted)
        with pytest.raises(Stopped):
            run.train(config, tmp_path / "stopped")
    run.train(config, tmp_path / "stopped")
    runs = {name: last_variables(tmp_path / name, config) for name in ("pictures", "cached")}
    assert_trees_equal(last_variables(tmp_path / "stopped", config), runs["cached"])
    (_, found), (step, expected) = runs["cached"], runs["pictures"]
    assert step == 6
    start = jax.device_get(factory.variables(config, 8))
    for kind in ("params", "batch_stats"):
        assert_trees_equal(found[kind]["backbone"], start[kind]["backbone"])
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )
    assert np.any(found["params"]["head"]["logits"]["kernel"] != 0)


@pytest.mark.full
def test_a_stop_while_features_are_computed(make_config, tmp_path, monkeypatch):
    config = make_config(**HEAD_ALONE, **{"phases.head.cache_features": "always"})
    original = JitExecutor.features

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JitExecutor, "features", interrupted)
        with pytest.raises(Stopped, match="stopped at step 0"):
            run.train(config, tmp_path)
    run.train(config, tmp_path)
    assert last_variables(tmp_path, config)[0] == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"phases.head.epochs": 8}, False),  # as many as views
        ({"phases.head.epochs": 8, "phases.head.cache_features": "always"}, True),
        ({"augment": "flip", "phases.head.epochs": 5}, True),
        ({"phases.head.cache_features": "never"}, False),
        ({"phases.head.freeze": "batchnorm"}, False),
        ({"parallel": "pmap"}, False),
    ],
)
def test_features_are_cached_where_that_pays(changes, expected, make_config):
    config = make_config(**{"phases.head.epochs": 9} | changes)
    assert factory.caches_features(config, "head", 1000, 8) == expected


def test_a_cache_that_would_be_large_is_left_alone(make_config):
    config = make_config(**{"phases.head.epochs": 9})
    assert factory.caches_features(config, "head", 2**30 // (8 * 256 * 4), 8)
    assert not factory.caches_features(config, "head", 2**30 // (8 * 256 * 4) + 1, 8)


@pytest.mark.parametrize("changes", [{"phases.head.freeze": "none"}, {"parallel": "pmap"}])
def test_a_cache_that_cannot_be(changes, make_config):
    message = "config.phases.head.cache_features is 'always', expected freeze to be backbone"
    with pytest.raises(UserError, match=message):
        make_config(**{"phases.head.cache_features": "always"} | changes)


@pytest.mark.full
@pytest.mark.parametrize(
    ("changes", "gamma", "tau", "even"),
    [
        ({}, 0.0, 0.0, False),
        ({"loss.name": "focal", "loss.gamma": 1.5}, 1.5, 0.0, False),
        ({"loss.logit_adjustment": 0.5}, 0.0, 0.5, True),
        ({"data.sampling": "balanced"}, 0.0, 0.0, True),
    ],
)
def test_the_loss_of_the_steps_is_the_config_s(
    changes, gamma, tau, even, make_config, tmp_path, monkeypatch
):
    step_configs, weights, original = [], [], JitExecutor.train

    def watched(self, phase, steps, state, data, order, class_weights):
        step_configs.append(self.step_config)
        weights.append(np.asarray(class_weights))
        return original(self, phase, steps, state, data, order, class_weights)

    monkeypatch.setattr(JitExecutor, "train", watched)
    run.train(make_config(**HEAD_ALONE | {"phases.head.epochs": 1}, **changes), tmp_path)
    assert step_configs[0].focal_gamma == gamma
    if tau:
        shift = np.array(step_configs[0].logit_shift)
        np.testing.assert_allclose(np.exp(shift / tau).sum(), 1, rtol=1e-6)
        assert shift.std() > 0.01
    else:
        assert step_configs[0].logit_shift == ()
    assert (weights[0].std() < 1e-6) == even


def test_accumulation_that_does_not_come_out_even(make_config, tmp_path):
    with pytest.raises(UserError, match="batch_size is 16, expected a multiple of the 8 devices"):
        run.train(make_config(accumulate_steps=3), tmp_path)


@pytest.mark.slow
def test_a_student_goes_on_without_its_teacher_as_if_it_had_not_stopped(
    make_config, trained, tmp_path, monkeypatch
):
    """Through a change of the image size, with a consistency loss and frozen stages."""
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    config = make_config(
        **{
            "augment": "d4|brightness(0.5)|mixup(0.4, p=0.5)",
            "loss.consistency": 12.0,
            "distill.workdir": str(teacher),
            "phases.head.freeze": "stages:2",
            "phases.finetune.sizes": "24:0.5,32",
            "ema": 0.9,
        },
    )
    assert config.data.train == "synthetic:160"  # the teacher's, so its splits are the same
    sizes, original = [], JitExecutor.train
    stop_at = None

    def counted(self, phase, *arguments):
        sizes.append(phase.size)
        if len(sizes) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, phase, *arguments)

    monkeypatch.setattr(JitExecutor, "train", counted)
    run.train(config, tmp_path / "straight")
    assert sizes == [None] * 7 + [24] * 7 + [None] * 7
    sizes.clear()
    stop_at = 12  # in the middle of the smaller size
    with pytest.raises(Stopped):
        run.train(config, tmp_path / "stopped")
    shutil.rmtree(teacher)
    run.train(config, tmp_path / "stopped")
    runs = [last_variables(tmp_path / name, config) for name in ("straight", "stopped")]
    assert runs[0][0] == 21
    assert_trees_equal(*runs)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")
    (tmp_path / "stopped" / distillation.FILE).unlink()
    with pytest.raises(UserError, match=r"teacher\.npz: No such file .*, expected the teacher's"):
        run.train(config, tmp_path / "stopped")
