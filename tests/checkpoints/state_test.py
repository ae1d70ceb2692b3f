import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.checkpoints.state import Average, Metrics, RunProgress, TrainState

from ..trees import assert_trees_equal


@pytest.fixture
def variables():
    return {"params": {"w": jnp.arange(3.0)}, "batch_stats": {"mean": jnp.ones(2)}}


def test_create_starts_at_step_zero_with_a_fresh_optimiser(variables):
    tx = optax.adam(0.1)
    state = TrainState.create(variables, tx)
    assert (state.step, state.step.dtype) == (0, jnp.int32)
    assert state.variables == variables
    assert_trees_equal(state.opt_state, tx.init(variables["params"]))


def test_a_network_without_batch_norm_has_empty_statistics(variables):
    state = TrainState.create({"params": variables["params"]}, optax.sgd(0.1))
    assert state.variables == {"params": variables["params"], "batch_stats": {}}


def test_a_new_phase_keeps_the_step_alone(variables):
    old = TrainState.create(variables, optax.sgd(0.1))
    old = old.replace(step=jnp.int32(7), metrics=old.metrics.replace(count=jnp.float32(64)))
    best = jax.tree.map(lambda leaf: leaf + 1, variables)
    tx = optax.adam(0.1)
    new = old.begin_phase(best, tx)
    assert new.step == 7
    assert new.variables == best
    assert new.metrics.count == 0
    assert jax.tree.structure(new.opt_state) == jax.tree.structure(tx.init(best["params"]))


def test_an_average_follows_at_first_and_lags_then():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(40, 5)).astype(np.float32)
    average = Average.of({"params": {"w": jnp.asarray(drawn[0])}})
    expected = drawn[0].astype(np.float64)
    update = jax.jit(Average.updated, static_argnums=3)
    for t, new in enumerate(drawn[1:]):
        average = update(average, {"w": jnp.asarray(new)}, {}, 0.7)
        decay = min(0.7, (1 + t) / (10 + t))  # 0.1 at first, and 0.7 from t = 20 on
        expected = decay * expected + (1 - decay) * new
        np.testing.assert_allclose(average.params["w"], expected, rtol=1e-5, atol=1e-6)
    assert (average.count, average.batch_stats) == (39, {})


def test_what_does_not_change_is_its_own_average_to_the_bit(variables):
    same = jax.tree.map(lambda leaf: leaf + 1 / 3, variables)
    average = Average.of(same)
    for _ in range(5):
        average = average.updated(same["params"], same["batch_stats"], 0.999)
    assert_trees_equal(average.variables, same)


def test_a_state_may_keep_an_average(variables):
    plain = TrainState.create(variables, optax.sgd(0.1))
    assert plain.ema is None
    assert plain.averaged == plain.variables
    state = TrainState.create(variables, optax.sgd(0.1), ema=True)
    best = jax.tree.map(lambda leaf: leaf + 1, variables)
    state = state.replace(ema=state.ema.updated(**best, decay=0.5))
    assert state.variables == variables
    np.testing.assert_allclose(state.averaged["params"]["w"], variables["params"]["w"] + 0.9)
    after = state.begin_phase(best, optax.adam(0.1))
    assert after.ema.count == 0
    assert_trees_equal(after.averaged, best)
    assert plain.begin_phase(best, optax.adam(0.1)).ema is None


def test_no_metrics_yet():
    metrics = Metrics.zeros()
    assert (metrics.loss, metrics.correct, metrics.count, metrics.bad_step) == (0, 0, 0, -1)


def test_an_epoch_begins_with_the_steps_skipped_in_a_row():
    metrics = Metrics(jnp.float32(3), jnp.float32(2), jnp.float32(16), jnp.int32(5))
    after = metrics.next_epoch(Metrics.zeros())
    assert (after.loss, after.correct, after.count, after.bad_step) == (0, 0, 0, 5)


@pytest.mark.parametrize(
    ("larger_is_better", "values"), [(True, (1.0, 2.0, 2.0)), (False, (3.0, 2.0, 2.0))]
)
def test_progress_counts_epochs_without_a_better_value(larger_is_better, values):
    progress = RunProgress(("a", "b"))
    first = progress.after_epoch(values[0], larger_is_better, 10)
    assert first == RunProgress(("a", "b"), 0, 1, 0, values[0], values[0], 10)
    second = first.after_epoch(values[1], larger_is_better, 20)
    assert (second.phase_best, second.best_step, second.epochs_without_improvement) == (
        values[1],
        20,
        0,
    )
    third = second.after_epoch(values[2], larger_is_better, 30)
    assert (third.best, third.best_step, third.epochs_without_improvement) == (values[1], 20, 1)


def test_progress_without_a_value_counts_epochs_alone():
    after = RunProgress(("a",)).after_epoch(None, True, 10)
    assert after == RunProgress(("a",), phase_epochs=1)


def test_a_phase_waits_for_its_own_best():
    progress = (
        RunProgress(("a",)).after_epoch(0.9, True, 10).after_epoch(0.8, True, 20).next_phase()
    )
    assert progress == RunProgress(("a",), 1, 0, 0, None, 0.9, 10)
    after = progress.after_epoch(0.7, True, 30)
    assert (after.phase_best, after.epochs_without_improvement, after.best, after.best_step) == (
        0.7,
        0,
        0.9,
        10,
    )


@pytest.mark.parametrize("larger_is_better", [True, False])
def test_the_best_epochs_so_far_lead(larger_is_better):
    progress, sign = RunProgress(("a",)), 1 if larger_is_better else -1
    seen = []
    for step, value in [(1, 0.5), (2, 0.9), (3, 0.5), (4, 0.7), (5, 0.9)]:
        progress = progress.after_epoch(sign * value, larger_is_better, step, keep=3)
        seen.append([step for step, _ in progress.top_k])
    assert seen == [[1], [2, 1], [2, 1, 3], [2, 4, 1], [2, 5, 4]]
    assert progress.top_k[2] == (4, sign * 0.7)
    assert progress.best_step == 2
    assert progress.next_phase().top_k == progress.top_k
    assert progress.after_epoch(sign * 1.0, larger_is_better, 6).top_k == ()


def test_what_a_run_may_go_back_to():
    assert RunProgress(("a",)).needs == set()
    assert RunProgress(("a",), best_step=7, top_k=((7, 0.1), (5, 0.2))).needs == {5, 7}


def test_a_best_checkpoint_that_is_lost():
    progress = RunProgress(("a",), best=0.1, best_step=7, top_k=((7, 0.1), (5, 0.2), (6, 0.3)))
    assert progress.without({1}) == progress
    left = progress.without({7, 6})
    assert (left.best_step, left.best, left.top_k) == (5, 0.2, ((5, 0.2),))
    none = progress.without({5, 6, 7})
    assert (none.best_step, none.best, none.top_k) == (None, None, ())
    assert none.after_epoch(0.9, False, 8).best_step == 8


def test_progress_of_a_checkpoint_in_format_1():
    content = json.loads(
        '{"classes": ["a", "b"], "phase": 1, "phase_epochs": 11, "waited": 2, "phase_best": 0.9,'
        ' "best": 0.95, "best_step": 26, "source": {"licence": "mit"},'
        ' "leaders": [[26, 0.95], [13, 0.9]], "trained": true}'
    )
    expected = RunProgress(
        classes=("a", "b"),
        phase=1,
        phase_epochs=11,
        epochs_without_improvement=2,
        phase_best=0.9,
        best=0.95,
        best_step=26,
        source={"licence": "mit"},
        top_k=((26, 0.95), (13, 0.9)),
        trained=True,
    )
    assert RunProgress.from_json(content) == expected


def test_progress_survives_json():
    progress = RunProgress(("a",), 1, 2, 1, 0.1, 0.3, 7, top_k=((7, 0.3),))
    assert RunProgress.from_json(json.loads(json.dumps(dataclasses.asdict(progress)))) == progress
