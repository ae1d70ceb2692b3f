import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.state import Metrics, TrainState


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


def test_no_metrics_yet():
    metrics = Metrics.zeros()
    assert (metrics.loss, metrics.correct, metrics.count, metrics.bad_step) == (0, 0, 0, -1)
