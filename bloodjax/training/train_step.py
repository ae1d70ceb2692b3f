"""The training step as pure functions; `executor` compiles them.

The same step runs under jit on one device, or on several where the compiler sees the global batch
and partitions it; and under shard_map or pmap, where it sees one device's share and says what is
summed over the devices.

Read from top to bottom: `train_steps` scans over `train_step`, which prepares a batch, computes the
loss and its gradients, and applies the optimizer's update if both are finite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Key, Num, PyTree

from bloodjax.augment import geometry, mix, pipeline
from bloodjax.augment.policy import Policy
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.data.batches import Batch, DeviceDataset, StackedBatches, gather, nth
from bloodjax.distributed import sharding
from bloodjax.models.head import Network
from bloodjax.models.layers import example_keys, micro_batch
from bloodjax.training import optim
from bloodjax.training.losses import adjust_logits, weighted_cross_entropy

# Streams of random numbers that the key of a step is folded into.
_AUGMENT, _DROPOUT, _MIX = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The parts of a step that are fixed for the run.

    Attributes:
      model: The network, built for `axis_name`.
      mean: Per-channel mean in 0..1, subtracted from the images.
      std: Per-channel standard deviation in 0..1, by which the images are then divided.
      batch_size: Size of the global batch.
      accumulate_steps: Number of micro-batches that a training step splits its batch into.
      seed: Random seed.
      augment: Augmentation policy of training.
      label_smoothing: Label smoothing, in [0, 1).
      focal_gamma: Exponent of the focal loss; 0 for cross-entropy.
      logit_shift: Per-class shift of the logits in the loss (`losses.adjust_logits`); () for none.
      ema: Decay per step of the average of the variables, if the state has one.
      skip: Number of consecutive steps that may be skipped. After more, every step is skipped.
      axis_name: Name of the axis of devices under pmap and shard_map, or None under jit.
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
    """The parts of a training step that differ between phases.

    Attributes:
      freeze: What is not trained; see `models.head.Network.__call__`.
      tx: Optimizer. It gives frozen parameters zero updates.
      cached: Whether the data are features of `predict_step.features_step` instead of images;
        `freeze` is "backbone" then.
    """

    freeze: str
    tx: optax.GradientTransformation
    cached: bool = False


def train_steps(
    step_config: StepConfig,
    phase: Phase,
    num_steps: int,
    state: TrainState,
    data: DeviceDataset | StackedBatches,
    order: Int32[Array, " n"] | None,
    class_weights: Float[Array, " classes"],
    *,
    split: jax.sharding.NamedSharding | None = None,
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
      class_weights: Per-class weight in the loss.
      split: Under jit, the sharding of a batch.
      layout: Under jit, the sharding of the state.

    Returns:
      The new state, and a copy of its metrics, which stays valid when the state is donated.
    """
    batch_at = _batches(step_config, data, order)

    def one_step(state: TrainState, i) -> TrainState:
        batch = batch_at(state.step, i)
        if split is not None:
            batch = lax.with_sharding_constraint(batch, split)
        state = train_step(step_config, phase, state, batch, class_weights, layout)
        return state if layout is None else layout.scattered(state)

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
    class_weights: Float[Array, " classes"],
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
      class_weights: Per-class weight in the loss.
      layout: Under jit, the sharding of the state.
    """
    arguments = (state.params, state.batch_stats, state.step, batch, class_weights)
    sums_of = _loss_and_gradients
    if layout is not None and layout.mesh.size > 1:
        sums_of = partial(_on_each_device if layout.explicit else _partitioned, layout)
    loss, correct, count, grads, batch_stats = sums_of(step_config, phase, *arguments)
    norm = optim.trainable_grad_norm(grads, state.batch_stats, phase.freeze)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def apply_update(state, grads, norm, batch_stats, loss, correct):
        # Optax promotes Python floats to an int32 count, which strict promotion does not allow.
        with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
            tx = optax.with_extra_args_support(phase.tx)
            updates, opt_state = tx.update(grads, state.opt_state, state.params, norm=norm)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                ema = ema.updated(params, batch_stats, step_config.ema)
        return TrainState(
            step=state.step,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics=_add(state.metrics, loss, correct, count),
            ema=ema,
        )

    new = (grads, norm, batch_stats, loss, correct)
    return apply_if_finite(finite, step_config.skip, apply_update, state, *new)


def _loss_and_gradients(
    step_config: StepConfig,
    phase: Phase,
    params: PyTree,
    batch_stats: PyTree,
    step: Int32[Array, ""],
    batch: Batch,
    class_weights: Float[Array, " classes"],
    *,
    devices: int = 1,
    sum_gradients: Callable[[PyTree], PyTree] | None = None,
) -> tuple[Array, Array, Array, PyTree, PyTree]:
    """Sums over the global batch, and the next running statistics.

    Args:
      step_config: The parts of a step that are fixed for the run.
      phase: The parts that differ between phases.
      params: Parameters.
      batch_stats: BatchNorm's running statistics.
      step: Number of the step.
      batch: This device's share of the batch if there is `step_config.axis_name`, else all of it.
      class_weights: Per-class weight in the loss.
      devices: Number of devices that share `batch`, if it is the global one.
      sum_gradients: Sums gradients over the devices; by default every device gets all sums.

    Returns:
      The mean loss, the number of examples classified correctly, that of all examples, the
      gradients of the mean loss, and the statistics.
    """
    key = jax.random.fold_in(jax.random.key(step_config.seed), step)
    shape = {"classes": len(class_weights), "axis_name": step_config.axis_name}
    if phase.cached:
        batch = select_cached_view(step_config.augment, key, batch, **shape)
    else:
        batch = prepare_batch(step_config.augment, key, batch, devices=devices, **shape)
    count = _sum_over_devices(step_config, jnp.sum(batch.mask.astype(jnp.float32)))

    def loss_fn(params, batch_stats, batch):
        inputs = batch.image
        if not phase.cached:
            inputs = normalise(inputs, step_config.mean, step_config.std)
        logits, updated = step_config.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            method="classify" if phase.cached else None,
            train=True,
            freeze=phase.freeze,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, _DROPOUT)},
        )
        total, _ = weighted_cross_entropy(
            adjust_logits(logits, step_config.logit_shift),
            batch.targets,
            class_weights,
            batch.mask,
            step_config.label_smoothing,
            step_config.focal_gamma,
        )
        hit = logits.argmax(-1) == batch.targets.argmax(-1)
        correct = jnp.sum((hit & batch.mask).astype(jnp.float32))
        # Dividing by the global count makes the gradients of devices and micro-batches sum to the
        # gradient of the mean.
        return total / count, (correct, updated.get("batch_stats", {}))

    def loss_and_gradient(batch_stats, batch):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (correct, batch_stats)), grads = value_and_grad(params, batch_stats, batch)
        return (loss, correct, grads), batch_stats

    (loss, correct, grads), batch_stats = _accumulate(
        step_config.accumulate_steps, loss_and_gradient, batch_stats, batch
    )
    loss, correct = _sum_over_devices(step_config, (loss, correct))
    sum_gradients = sum_gradients or partial(_sum_over_devices, step_config)
    return loss, correct, count, sum_gradients(grads), batch_stats


def _partitioned(
    layout: sharding.Layout,
    step_config: StepConfig,
    phase: Phase,
    params: PyTree,
    batch_stats: PyTree,
    *arguments: PyTree,
) -> tuple[Array, Array, Array, PyTree, PyTree]:
    """`_loss_and_gradients` under jit, partitioned over the devices by the compiler."""
    params, batch_stats = layout.gathered((params, batch_stats))
    devices = layout.mesh.size
    *sums, grads, batch_stats = _loss_and_gradients(
        step_config, phase, params, batch_stats, *arguments, devices=devices
    )
    return *sums, *layout.scattered((grads, batch_stats))


def _on_each_device(
    layout: sharding.Layout,
    step_config: StepConfig,
    phase: Phase,
    params: PyTree,
    batch_stats: PyTree,
    step: Int32[Array, ""],
    batch: Batch,
    class_weights: Float[Array, " classes"],
) -> tuple[Array, Array, Array, PyTree, PyTree]:
    """`_loss_and_gradients` under jit, where each device computes with its share of the batch.

    The compiler could partition the computation by itself (`_partitioned`). It then sums the
    gradients in each micro-batch. On TPUs it scatters the sum of a split parameter's gradient in a
    loop of small matrix products, and that of others as a full sum. It cannot partition kernels
    that are written in Pallas.
    """
    model = step_config.model
    names = {"axis_name": sharding.AXIS}
    model = model.clone(backbone=model.backbone.clone(**names), head=model.head.clone(**names))
    step_config = dataclasses.replace(step_config, model=model, **names)
    dtypes = compute_dtypes(model, params)
    params_spec, stats_spec = layout.specs((params, batch_stats))
    labels = optim.freeze_labels(params, batch_stats, phase.freeze)
    trained = jax.tree.map(lambda label: label == "train", labels)

    def on_device(params, batch_stats, *arguments):
        params = layout.gather(params, params_spec, dtypes)
        batch_stats = layout.gather(batch_stats, stats_spec)
        *sums, batch_stats = _loss_and_gradients(
            step_config,
            phase,
            params,
            batch_stats,
            *arguments,
            sum_gradients=lambda grads: layout.reduce(grads, params_spec, dtypes, trained),
        )
        return *sums, layout.part(batch_stats, stats_spec)

    every, split = PartitionSpec(), PartitionSpec(sharding.AXIS)
    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(params_spec, stats_spec, every, split, every),
        out_specs=(every, every, every, params_spec, stats_spec),
        check_vma=False,
    )(params, batch_stats, step, batch, class_weights)


def compute_dtypes(model: Network, variables: PyTree) -> PyTree:
    """The dtype of each of a network's variables in which a step computes with it.

    Kernels are cast to the network's dtype before they are used, except that of the logits. Biases
    and scales, of which there are few, may be used in float32.
    """

    def dtype(path, leaf):
        names = [key.key for key in path]
        in_float32 = names[-1] != "kernel" or names[-3:-1] == ["head", "logits"]
        return leaf.dtype if in_float32 else jnp.dtype(model.backbone.dtype)

    return jax.tree_util.tree_map_with_path(dtype, variables)


def prepare_batch(
    policy: Policy,
    key: Key[Array, ""],
    batch: Batch,
    *,
    classes: int,
    axis_name: str | None = None,
    devices: int = 1,
) -> Batch:
    """Augments and mixes a batch and fills in its targets.

    Args:
      policy: Augmentation policy.
      key: Key of the step.
      batch: Images in 0..255; under pmap this device's share.
      classes: Number of classes.
      axis_name: Name of pmap's axis, or None under jit.
      devices: Under jit, the number of devices that share the batch.

    Returns:
      The batch with images in 0..255, float32 or uint8, and targets.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    images = pipeline.augment(policy, keys, batch.image, devices=devices)
    targets = _one_hot(batch.label, classes)
    if policy.mix:
        keys = _example_keys(key, _MIX, batch, axis_name)
        images, targets = mix.mix(policy.mix, keys, images, targets)
    return batch.replace(image=images, targets=targets)


def select_cached_view(
    policy: Policy, key: Key[Array, ""], batch: Batch, *, classes: int, axis_name: str | None = None
) -> Batch:
    """`prepare_batch` for cached features: selects the view that `prepare_batch` would draw.

    Args:
      policy: Augmentation policy, of views only.
      key: Key of the step.
      batch: Features [batch, views, features] of each view; under pmap this device's share.
      classes: Number of classes.
      axis_name: Name of pmap's axis, or None under jit.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    index = geometry.random_index(keys, policy.views)
    drawn = jnp.take_along_axis(batch.image, index[:, None, None], axis=1)[:, 0]
    return batch.replace(image=drawn, targets=_one_hot(batch.label, classes))


def _example_keys(key, stream: int, batch: Batch, axis_name: str | None):
    return example_keys(jax.random.fold_in(key, stream), len(batch.label), axis_name)


def _one_hot(labels: Int32[Array, " batch"], classes: int) -> Float[Array, "batch classes"]:
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)


@jax.named_scope("normalise")
def normalise(
    images: Num[Array, "*batch size size 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "*batch size size 3"]:
    """The network's input: `(images / 255 - mean) / std` per channel, for images in 0..255."""
    shape = (1,) * (images.ndim - 1) + (3,)
    scale = jnp.asarray(255.0 * np.asarray(std), jnp.float32).reshape(shape)
    shift = jnp.asarray(np.asarray(mean) / np.asarray(std), jnp.float32).reshape(shape)
    return images.astype(jnp.float32) / scale - shift


def _accumulate(
    number: int,
    function: Callable[[PyTree, Batch], tuple[PyTree, PyTree]],
    carry: PyTree,
    batch: Batch,
) -> tuple[PyTree, PyTree]:
    """Applies `function(carry, micro_batch)` to `number` micro-batches, one after another.

    `optax.microbatch` could not replace it: it carries nothing from one micro-batch to the next,
    which BatchNorm's statistics need, and does not tell the function which micro-batch it has,
    which the keys of dropout depend on.

    Returns:
      The sum of the first results of `function`, and the last carry.
    """
    if number == 1:
        return function(carry, batch)

    def micro_batch_at(index):
        # Examples index, index + number, ...: each device uses examples that it holds, and the
        # micro-batches are the same on any number of devices.
        def take(x):
            rows = x.reshape(-1, number, *x.shape[1:])
            return lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False)

        return jax.tree.map(take, batch)

    def one(carried, index):
        sums, carry = carried
        with micro_batch(index, number):
            new, carry = function(carry, micro_batch_at(index))
        return (jax.tree.map(jnp.add, sums, new), carry), None

    like, _ = jax.eval_shape(lambda: function(carry, micro_batch_at(0)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(one, (zeros, carry), jnp.arange(number, dtype=jnp.int32))[0]


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
def _add(metrics: Metrics, loss, correct, count) -> Metrics:
    return metrics.replace(
        loss=metrics.loss + loss * count,
        correct=metrics.correct + correct,
        count=metrics.count + count,
    )


def _sum_over_devices(step_config: StepConfig, tree: PyTree) -> PyTree:
    return tree if step_config.axis_name is None else lax.psum(tree, step_config.axis_name)
