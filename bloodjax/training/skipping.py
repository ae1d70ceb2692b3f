"""A training step that may be skipped, within the compiled program and without asking the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from bloodjax.checkpoints.state import TrainState


def apply_if_finite(
    finite: Bool[Array, ""],
    skip: int,
    apply_update: Callable[..., TrainState],
    state: TrainState,
    *new: PyTree,
) -> TrainState:
    """The state after a step that is taken or skipped; `step` and `metrics.bad_step` are seen to.

    A skipped step leaves all else as it is, bit for bit.

    Args:
      finite: whether the step's loss and gradient are; a step of which they are not is skipped.
      skip: how many in a row may be; after more, all steps are skipped.
      apply_update: from `state` and `new` to the state after a step that is taken.
      state: before the step.
      *new: what else the step has come to: its gradient and the like.
    """
    bad_step = state.metrics.bad_step
    taken = finite & ((bad_step < 0) | (state.step - bad_step <= skip))
    # On CPU a branch leaves the update's loops as they are, where a choice within them has XLA copy
    # much of the state. A GPU's host would wait for the branch's condition at each step.
    after = lax.platform_dependent(
        taken,
        state,
        *new,
        cpu=partial(_branch, apply_update),
        default=partial(_choice, apply_update),
    )
    first = jnp.where(bad_step < 0, state.step, bad_step)
    metrics = after.metrics.replace(bad_step=jnp.where(taken, -1, first))
    return after.replace(step=state.step + 1, metrics=metrics)


def _branch(apply_update, taken, state: TrainState, *new) -> TrainState:
    return lax.cond(taken, apply_update, lambda state, *_: state, state, *new)


def _choice(apply_update, taken, state: TrainState, *new) -> TrainState:
    after = apply_update(state, *new)
    with jax.named_scope("optimizer"):
        return jax.tree.map(partial(lax.select, taken), after, state)
