"""The training step, as a pure function; `executor` compiles it, and `predict_step`'s functions.

The same step runs under jit over a mesh of all devices, where the compiler sees the global batch,
and under pmap, where it sees one device's share and asks for sums across the devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int32, Num, PyTree

from bloodjax.augment.policy import Policy
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.data.batches import Batch, DeviceDataset, StackedBatches, gather, nth
from bloodjax.distributed import sharding
from bloodjax.models.head import Network
from bloodjax.models.layers import micro_batch
from bloodjax.training import inputs, optim
from bloodjax.training.losses import adjust_logits, weighted_cross_entropy
from bloodjax.training.skipping import apply_if_finite

# The stream of random numbers, of those that a step's key branches into; `inputs` has the others.
_DROPOUT = 1


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Everything about a step that is fixed while it is compiled.

    Attributes:
      model: built for `axis_name`.
      mean: of each colour channel, in 0..1, subtracted from the images.
      std: of each colour channel, in 0..1, by which they are divided then.
      batch_size: of the global batch.
      accumulate_steps: micro-batches that a training step works through the batch in.
      seed: of everything random.
      augment: what training sees of the images.
      label_smoothing: in [0, 1).
      focal_gamma: of focal loss; 0 for cross-entropy.
      logit_shift: of each class in the loss (`losses.adjust_logits`); () for none.
      ema: how much of the average of the variables a step keeps, where the state has one.
      skip: how many steps in a row may be skipped; after more, no step is taken any longer.
      axis_name: pmap's axis, or None under jit.
    """

    model: Network
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size: int = 64
    accumulate_steps: int = 1
    seed: int = 0
    augment: Policy = dataclasses.field(default_factory=Policy)
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    logit_shift: tuple[float, ...] = ()
    ema: float = 0.0
    skip: int = 5
    axis_name: str | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """What of a training step changes from phase to phase.

    Attributes:
      freeze: what is not trained; see `models.head.Network.__call__`.
      tx: the optimiser, which leaves frozen parameters alone.
      cached: the data are what `features_step` gave, in place of images; `freeze` is "backbone".
    """

    freeze: str
    tx: optax.GradientTransformation
    cached: bool = False


@jax.named_scope("normalise")
def normalise(
    images: Num[Array, "*batch size size 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "*batch size size 3"]:
    """Images in 0..255 as a network takes them: `(x / 255 - mean) / std` of each channel."""
    shape = (1,) * (images.ndim - 1) + (3,)
    scale = jnp.asarray(255.0 * np.asarray(std), jnp.float32).reshape(shape)
    shift = jnp.asarray(np.asarray(mean) / np.asarray(std), jnp.float32).reshape(shape)
    return images.astype(jnp.float32) / scale - shift


def train_step(
    recipe: StepConfig,
    phase: Phase,
    state: TrainState,
    batch: Batch,
    class_weights: Float[Array, " classes"],
    devices: int = 1,
    layout: sharding.Layout | None = None,
) -> TrainState:
    """One step of the optimiser; `batch` is this device's share, or under jit all `devices`'.

    A step whose loss or gradient is not finite is skipped: but for the step's number and
    `Metrics.bad_step`, the state stays what it was, bit for bit. `layout` says, under jit, how the
    state lies on the devices.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    shape = {"classes": len(class_weights), "axis_name": recipe.axis_name}
    if phase.cached:
        batch = inputs.drawn_view(recipe.augment, key, batch, **shape)
    else:
        batch = inputs.prepare_batch(recipe.augment, key, batch, devices=devices, **shape)
    count = _sum_over_devices(recipe, jnp.sum(batch.mask.astype(jnp.float32)))

    def loss_fn(params, batch_stats, batch):
        logits, updated = recipe.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.image if phase.cached else normalise(batch.image, recipe.mean, recipe.std),
            method="classify" if phase.cached else None,
            train=True,
            freeze=phase.freeze,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, _DROPOUT)},
        )
        total, _ = weighted_cross_entropy(
            adjust_logits(logits, recipe.logit_shift),
            batch.targets,
            class_weights,
            batch.mask,
            recipe.label_smoothing,
            recipe.focal_gamma,
        )
        hit = logits.argmax(-1) == batch.targets.argmax(-1)
        correct = jnp.sum((hit & batch.mask).astype(jnp.float32))
        # Divided by the global count, so that the gradients of devices and micro-batches add up to
        # the mean's.
        return total / count, (correct, updated.get("batch_stats", {}))

    def sums(batch_stats, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (correct, batch_stats)), grads = gradient(params, batch_stats, batch)
        return (loss, correct, grads), batch_stats

    params, batch_stats = state.params, state.batch_stats
    if layout is not None:
        params, batch_stats = layout.gathered((params, batch_stats))
    totals, batch_stats = _accumulate(recipe.accumulate_steps, sums, batch_stats, batch)
    loss, correct, grads = _sum_over_devices(recipe, totals)
    if layout is not None:
        grads, batch_stats = layout.scattered((grads, batch_stats))
    norm = optim.trainable_grad_norm(grads, state.batch_stats, phase.freeze)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def apply_update(state, grads, norm, batch_stats, loss, correct):
        # Optax raises Python floats to an int32 count, which strict promotion does not allow.
        with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
            tx = optax.with_extra_args_support(phase.tx)
            updates, opt_state = tx.update(grads, state.opt_state, state.params, norm=norm)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                ema = ema.updated(params, batch_stats, recipe.ema)
        return TrainState(
            step=state.step,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics=_add(state.metrics, loss, correct, count),
            ema=ema,
        )

    new = (grads, norm, batch_stats, loss, correct)
    return apply_if_finite(finite, recipe.skip, apply_update, state, *new)


def _accumulate(
    number: int,
    function: Callable[[PyTree, Batch], tuple[PyTree, PyTree]],
    carry: PyTree,
    batch: Batch,
) -> tuple[PyTree, PyTree]:
    """What `function(carry, batch)` gives, summed over `number` micro-batches one after another.

    The function returns what is to be summed, and what is carried on to the next micro-batch.
    """
    if number == 1:
        return function(carry, batch)

    def taken(index):
        # Examples index, index + number, ...: the same ones on any number of devices, each of which
        # keeps those that it has.
        def take(x):
            rows = x.reshape(-1, number, *x.shape[1:])
            return lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False)

        return jax.tree.map(take, batch)

    def one(carried, index):
        totals, carry = carried
        with micro_batch(index, number):
            new, carry = function(carry, taken(index))
        return (jax.tree.map(jnp.add, totals, new), carry), None

    like, _ = jax.eval_shape(lambda: function(carry, taken(0)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(one, (zeros, carry), jnp.arange(number, dtype=jnp.int32))[0]


@jax.named_scope("metrics")
def _add(metrics: Metrics, loss, correct, count) -> Metrics:
    return metrics.replace(
        loss=metrics.loss + loss * count,
        correct=metrics.correct + correct,
        count=metrics.count + count,
    )


def _sum_over_devices(recipe: StepConfig, tree: PyTree) -> PyTree:
    return tree if recipe.axis_name is None else lax.psum(tree, recipe.axis_name)


def train_steps(
    recipe: StepConfig,
    phase: Phase,
    steps: int,
    state: TrainState,
    data: DeviceDataset | StackedBatches,
    order: Int32[Array, " n"] | None,
    class_weights: Float[Array, " classes"],
    *,
    split: jax.sharding.NamedSharding | None = None,
    layout: sharding.Layout | None = None,
) -> tuple[TrainState, Metrics]:
    """`steps` steps on the batches that come next in the epoch's `order`.

    Args:
      recipe: what never changes.
      phase: what changes from phase to phase.
      steps: how many; they must not run past the epoch's end.
      state: before the first of them.
      data: the training part, whole; or this device's share of these steps' batches.
      order: of the present epoch; None where the batches are handed in.
      class_weights: of the loss.
      split: under jit, how a batch lies on the devices.
      layout: under jit, how the state does.

    Returns:
      The new state, and a copy of its metrics that outlives the state's donation.
    """
    batch_of = _batches(recipe, data, order)
    devices = 1 if split is None else split.mesh.size

    def one(state: TrainState, i) -> TrainState:
        batch = batch_of(state.step, i)
        if split is not None:
            batch = lax.with_sharding_constraint(batch, split)
        state = train_step(recipe, phase, state, batch, class_weights, devices, layout)
        return state if layout is None else layout.scattered(state)

    if steps == 1:
        state = one(state, 0)
    else:
        state, _ = lax.scan(lambda carry, i: (one(carry, i), None), state, jnp.arange(steps))
    return state, jax.tree.map(jnp.copy, state.metrics)


def _batches(
    recipe: StepConfig, data: DeviceDataset | StackedBatches, order: Int32[Array, " n"] | None
) -> Callable[..., Batch]:
    """From a step, in the run and in the call, to this device's share of its batch."""
    if order is None:
        return lambda _, i: nth(data, i)
    per_epoch = len(order) // recipe.batch_size
    if recipe.axis_name is None:
        size, offset = recipe.batch_size, jnp.int32(0)
    else:
        size = sharding.per_device(recipe.batch_size)
        offset = lax.axis_index(recipe.axis_name) * size

    def next_in_order(step, _) -> Batch:
        return gather(data, order, step % per_epoch * recipe.batch_size + offset, size)

    return next_in_order
