import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.checkpoints.state import Average, Metrics, TrainState


@pytest.fixture
def variables():
    return {"params": {"w": jnp.arange(3.0)}, "batch_stats": {"mean": jnp.ones(2)}}


def test_create_starts_at_step_zero_with_a_fresh_optimiser(variables):
    tx = optax.adam(0.1)
    state = TrainState.create(variables, tx)
    assert (state.step, state.step.dtype) == (0, jnp.int32)
    assert state.variables == variables
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, tx.init(variables["params"]))


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
    jax.tree.map(np.testing.assert_array_equal, average.variables, same)


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
    jax.tree.map(np.testing.assert_array_equal, after.averaged, best)
    assert plain.begin_phase(best, optax.adam(0.1)).ema is None


def test_no_metrics_yet():
    metrics = Metrics.zeros()
    assert (metrics.loss, metrics.correct, metrics.count, metrics.bad_step) == (0, 0, 0, -1)


def test_an_epoch_begins_with_the_steps_skipped_in_a_row():
    metrics = Metrics(jnp.float32(3), jnp.float32(2), jnp.float32(16), jnp.int32(5))
    after = metrics.next_epoch(Metrics.zeros())
    assert (after.loss, after.correct, after.count, after.bad_step) == (0, 0, 0, 5)
