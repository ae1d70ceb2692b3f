import functools
import threading
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment.tta import TTAConfig
from bloodjax.evaluation import predictor
from bloodjax.evaluation.predictor import Predictor, split
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import StepConfig

from ..trees import assert_trees_close, assert_trees_equal

CLASSES, PLAIN = 3, TTAConfig("none")


@functools.cache
def step_config():
    model = Network(SimpleCNN(depths=(1,), widths=(8,)), Head(CLASSES, hidden=()))
    return StepConfig(model, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), batch_size=16)


@functools.cache
def variables():
    init = jax.jit(step_config().model.init)
    drawn = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    rng = np.random.default_rng(1)

    def statistic(a):
        return rng.uniform(0.5, 1.5, a.shape).astype(np.float32)

    return {**drawn, "batch_stats": jax.tree.map(statistic, drawn["batch_stats"])}


@functools.cache
def images():
    return np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)


def executor():
    return JitExecutor(step_config(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model():
    return Predictor(executor(), variables())


def test_calls_of_any_size_give_the_executors_results(model):
    expected = executor().predict(variables(), images(), PLAIN)
    for n in (1, 3, 7, 70):
        assert_trees_close(model.predict(images()[:n], PLAIN), expected[:n])


def test_views_give_the_executors_results(model):
    few = images()[:3]
    chosen = (("rotate_90", 0.25), ("flip_up_down", 0.75))
    config = TTAConfig("d4", weights=chosen, with_plain=True)
    found = model.predict(few, config)
    assert found.shape == (3, 2, CLASSES)
    assert_trees_close(found, executor().predict(variables(), few, config))
    each = model.each_view(few, "flip")
    assert each.shape == (3, 4, CLASSES)
    assert_trees_close(each, executor().each_view(variables(), few, "flip"))


def test_features_and_logits(model):
    features, logits = model.describe(images()[:9])
    assert features.shape == (9, 8)
    assert_trees_close((features, logits), executor().describe(variables(), images()[:9]))
    exact = jax.nn.softmax(logits, axis=-1)
    assert_trees_close(model.predict(images()[:9], PLAIN), np.asarray(exact))


def test_the_variables_are_those_that_were_given(model):
    assert_trees_equal(model.variables, variables())


def test_results_may_be_changed(model):
    model.predict(images()[:1], PLAIN)[0] = 0


def test_threads_share_what_is_compiled(monkeypatch):
    traced = []

    def step(*arguments):
        traced.append(threading.get_ident())
        return predictor_step(*arguments)

    predictor_step = predictor.predict_step
    monkeypatch.setattr(predictor, "predict_step", step)
    model = Predictor(executor(), variables())
    start = threading.Barrier(8)

    def call(_):
        start.wait()
        return model.predict(images()[:1], PLAIN)

    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(8)))
    assert len(traced) == 1
    for result in found:
        np.testing.assert_array_equal(result, found[0])


def test_a_failure_to_compile_does_not_stay(monkeypatch):
    model = Predictor(executor(), variables())

    def fails(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(predictor, "predict_step", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            model.predict(images()[:1], PLAIN)
    assert model.predict(images()[:1], PLAIN).shape == (1, CLASSES)


def test_splits_cost_little():
    sizes = (1, 8, 16)
    assert split(1, sizes) == [1]
    assert split(3, sizes) == [1, 1, 1]
    assert split(7, sizes) == [8]
    assert split(15, sizes) == [16]
    assert split(17, sizes) == [16, 1]
    assert split(70, (16,)) == [16] * 5
    for n in range(1, 70):
        found = split(n, sizes)
        assert sum(found[:-1]) < n <= sum(found), "only the last batch is padded"
        assert sum(found) - n < 8
