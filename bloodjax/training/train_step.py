"""The training step as pure functions; `executor` compiles them.

Under jit a step sees the global batch, of which each of several devices computes its share
(`device_shares`). Under pmap it sees one device's share.

Read from top to bottom: `train_steps` scans over `train_step`, which computes a batch's loss and
gradients (`gradients`), and applies the optimizer's update if both are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree

from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.data.batches import Batch, DeviceDataset, StackedBatches, gather, nth
from bloodjax.distributed import sharding
from bloodjax.training import device_shares, gradients, optim
from bloodjax.training.gradients import BatchSums
from bloodjax.training.online_teacher import WithTeacher
from bloodjax.training.step_config import Phase, StepConfig


def train_steps(
    step_config: StepConfig,
    phase: Phase,
    num_steps: int,
    state: TrainState,
    data: DeviceDataset | StackedBatches,
    order: Int32[Array, " n"] | None,
    class_weights: Float[Array, " classes"] | WithTeacher,
    *,
    layout: sharding.Layout | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes `num_steps` steps on the next batches of the epoch.

    Args:
      step_config: The parts of a step that are fixed for the run.
      phase: The parts that differ between phases.
      num_steps: Number of steps; they must end within the epoch.
      state: State before the first step.
      data: All training images, or this device's share of the batches of these steps.
      order: Order of the images in this epoch; None if `data` are batches.
      class_weights: Per-class weight in the loss, with an online teacher if there is one.
      layout: Under jit, the sharding of the state.

    Returns:
      The new state, and a copy of its metrics, which stays valid when the state is donated.
    """
    batch_at = _batches(step_config, data, order)

    def one_step(state: TrainState, i) -> TrainState:
        batch = batch_at(state.step, i)
        if layout is None:
            return train_step(step_config, phase, state, batch, class_weights)
        batch = lax.with_sharding_constraint(batch, sharding.by_batch(layout.mesh))
        state = train_step(step_config, phase, state, batch, class_weights, layout)
        return layout.scattered(state)

    if num_steps == 1:
        state = one_step(state, 0)
    else:
        indices = jnp.arange(num_steps)
        state, _ = lax.scan(lambda carry, i: (one_step(carry, i), None), state, indices)
    return state, jax.tree.map(jnp.copy, state.metrics)


def _batches(
    step_config: StepConfig,
    data: DeviceDataset | StackedBatches,
    order: Int32[Array, " n"] | None,
) -> Callable[..., Batch]:
    """A function of (step of the run, index within the call) that gives this device's batch."""
    if order is None:
        return lambda _, i: nth(data, i)
    steps_per_epoch = len(order) // step_config.batch_size
    if step_config.axis_name is None:
        size, offset = step_config.batch_size, jnp.int32(0)
    else:
        size = sharding.per_device(step_config.batch_size)
        offset = lax.axis_index(step_config.axis_name) * size

    def next_in_order(step, _) -> Batch:
        start = step % steps_per_epoch * step_config.batch_size + offset
        return gather(data, order, start, size)

    return next_in_order


def train_step(
    step_config: StepConfig,
    phase: Phase,
    state: TrainState,
    batch: Batch,
    class_weights: Float[Array, " classes"] | WithTeacher,
    layout: sharding.Layout | None = None,
) -> TrainState:
    """Takes one optimizer step.

    If the loss or the gradient is not finite, the step is skipped: only the step number and
    `Metrics.bad_step` change.

    Args:
      step_config: The parts of a step that are fixed for the run.
      phase: The parts that differ between phases.
      state: State before the step.
      batch: Under pmap this device's share of the batch; under jit the global batch.
      class_weights: Per-class weight in the loss, with an online teacher if there is one.
      layout: Under jit, the sharding of the state.
    """
    sums_of = gradients.batch_sums
    if layout is not None and layout.mesh.size > 1:
        sums_of = partial(device_shares.batch_sums, layout)
    sums = sums_of(step_config, phase, state.variables, state.step, batch, class_weights)
    norm = optim.trainable_grad_norm(sums.grads, state.batch_stats, phase.freeze)
    finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

    def apply_update(state: TrainState, sums: BatchSums, norm) -> TrainState:
        # Optax promotes Python floats to an int32 count, which strict promotion does not allow.
        with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
            tx = optax.with_extra_args_support(phase.tx)
            updates, opt_state = tx.update(sums.grads, state.opt_state, state.params, norm=norm)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                ema = ema.updated(params, sums.batch_stats, step_config.ema)
        return TrainState(
            step=state.step,
            params=params,
            batch_stats=sums.batch_stats,
            opt_state=opt_state,
            metrics=_add(state.metrics, sums),
            ema=ema,
        )

    return apply_if_finite(finite, step_config.skip, apply_update, state, sums, norm)


def apply_if_finite(
    finite: Bool[Array, ""],
    skip: int,
    apply_update: Callable[..., TrainState],
    state: TrainState,
    *new: PyTree,
) -> TrainState:
    """Applies the update or skips the step, without asking the host.

    Args:
      finite: Whether the loss and the gradient of the step are finite. If not, it is skipped.
      skip: Number of consecutive steps that may be skipped. After more, every step is skipped.
      apply_update: Function of `state` and `new` that gives the state after an applied step.
      state: State before the step.
      *new: Other arguments of `apply_update`, such as the gradient.

    Returns:
      The next state. After a skipped step, only `step` and `metrics.bad_step` differ from `state`.
    """
    bad_step = state.metrics.bad_step
    applied = finite & ((bad_step < 0) | (state.step - bad_step <= skip))
    # On CPU a branch keeps the update's loops as they are, whereas a select inside them makes XLA
    # copy much of the state. On GPU the host would wait for the branch's condition in each step.
    after = lax.platform_dependent(
        applied,
        state,
        *new,
        cpu=partial(_branch, apply_update),
        default=partial(_select, apply_update),
    )
    first_bad = jnp.where(bad_step < 0, state.step, bad_step)
    metrics = after.metrics.replace(bad_step=jnp.where(applied, -1, first_bad))
    return after.replace(step=state.step + 1, metrics=metrics)


def _branch(apply_update, applied, state: TrainState, *new) -> TrainState:
    return lax.cond(applied, apply_update, lambda state, *_: state, state, *new)


def _select(apply_update, applied, state: TrainState, *new) -> TrainState:
    after = apply_update(state, *new)
    with jax.named_scope("optimizer"):
        return jax.tree.map(partial(lax.select, applied), after, state)


@jax.named_scope("metrics")
def _add(metrics: Metrics, sums: BatchSums) -> Metrics:
    return metrics.replace(
        loss=metrics.loss + sums.loss * sums.count,
        correct=metrics.correct + sums.correct,
        count=metrics.count + sums.count,
    )
