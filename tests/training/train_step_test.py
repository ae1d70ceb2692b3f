import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from bloodjax.checkpoints.state import TrainState
from bloodjax.training.train_step import apply_if_finite

from ..trees import assert_trees_equal


def apply_update(state, grads):
    params = jax.tree.map(jnp.add, state.params, grads)
    return state.replace(params=params, metrics=state.metrics.replace(count=jnp.float32(16)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(form, skip, state, grads):
    finite = jnp.isfinite(grads["w"]).all()
    with pytest.MonkeyPatch.context() as patch:
        if form == "default":  # of a GPU or TPU
            patch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
        return apply_if_finite(finite, skip, apply_update, state, grads)


@pytest.mark.parametrize("form", ["cpu", "default"])
def test_a_step_that_is_not_finite_changes_nothing(form):
    state = TrainState.create({"params": {"w": jnp.arange(3.0)}}, optax.adam(0.1))
    good, bad = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, np.nan, 1.0])}
    taken = step(form, 2, state, good)
    np.testing.assert_array_equal(taken.params["w"], [1, 2, 3])
    assert (taken.step, taken.metrics.bad_step, taken.metrics.count) == (1, -1, 16)
    skipped = step(form, 2, taken, bad)
    assert (skipped.step, skipped.metrics.bad_step) == (2, 1)
    same = skipped.replace(step=taken.step, metrics=taken.metrics)
    assert_trees_equal(same, taken)
    after = step(form, 2, skipped, good)
    np.testing.assert_array_equal(after.params["w"], [2, 3, 4])
    assert (after.step, after.metrics.bad_step) == (3, -1)


@pytest.mark.parametrize("skip", [0, 2])
def test_after_too_many_in_a_row_no_step_is_taken(skip):
    state = TrainState.create({"params": {"w": jnp.arange(3.0)}}, optax.adam(0.1))
    good, bad = {"w": jnp.ones(3)}, {"w": jnp.full(3, np.inf)}
    for _ in range(skip):
        state = step("cpu", skip, state, bad)
    forgiven = step("cpu", skip, state, good)
    np.testing.assert_array_equal(forgiven.params["w"], [1, 2, 3])
    state = step("cpu", skip, step("cpu", skip, state, bad), good)
    np.testing.assert_array_equal(state.params["w"], [0, 1, 2])
    assert (state.step, state.metrics.bad_step) == (skip + 2, 0)
