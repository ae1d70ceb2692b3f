"""The loss of a batch and its gradients: on one device, or of this device's share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, PyTree

from bloodjax.data.batches import Batch
from bloodjax.models.layers import micro_batch, views_of_examples
from bloodjax.training import online_teacher, step_input
from bloodjax.training.losses import (
    adjust_logits,
    distillation_loss,
    jensen_shannon,
    weighted_sum,
)
from bloodjax.training.online_teacher import WithTeacher
from bloodjax.training.step_config import Phase, StepConfig


class BatchSums(NamedTuple):
    """What a step learns from its batch.

    Attributes:
      loss: Mean loss of the global batch.
      correct: Number of its examples that are classified correctly.
      count: Number of its examples.
      grads: Gradients of the mean loss by the parameters.
      batch_stats: The next running statistics of BatchNorm.
    """

    loss: PyTree
    correct: PyTree
    count: PyTree
    grads: PyTree
    batch_stats: PyTree


def batch_sums(
    step_config: StepConfig,
    phase: Phase,
    variables: PyTree,
    step: Int32[Array, ""],
    batch: Batch,
    class_weights: Float[Array, " classes"] | WithTeacher,
    *,
    sum_gradients: Callable[[PyTree], PyTree] | None = None,
) -> BatchSums:
    """The loss and its gradients, summed over the devices if there is `step_config.axis_name`.

    Args:
      step_config: The parts of a step that are fixed for the run.
      phase: The parts that differ between phases.
      variables: The parameters and BatchNorm's running statistics.
      step: Number of the step.
      batch: This device's share of the batch if there is `step_config.axis_name`, else all of it.
      class_weights: Per-class weight in the loss, with an online teacher if there is one.
      sum_gradients: Sums gradients over the devices; by default every device gets all sums.
    """
    key = jax.random.fold_in(jax.random.key(step_config.seed), step)
    teacher = None
    if isinstance(class_weights, WithTeacher):
        class_weights, teacher = class_weights.class_weights, class_weights.variables
    objective = step_config.objective
    shape = {
        "classes": len(class_weights),
        "axis_name": step_config.axis_name,
        "objective": objective,
    }
    views = step_input.VIEWS if step_config.consistency and not phase.cached else 1
    if phase.cached:
        batch = step_input.select_cached_view(step_config.augment, key, batch, **shape)
    else:
        batch = step_input.prepare_batch(
            step_config.augment, key, batch, **shape, size=phase.size, several_views=views > 1
        )
    model = step_config.model.freezing(phase.freeze)
    count = _sum_over_devices(step_config, jnp.sum(batch.mask.astype(jnp.float32)))

    def loss_fn(params, batch_stats, batch):
        inputs = batch.image
        if not phase.cached:
            inputs = step_input.normalise(inputs, step_config.mean, step_config.std)
        if views > 1:
            inputs = inputs.reshape(-1, *inputs.shape[2:])
        with views_of_examples(views):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                inputs,
                method="classify" if phase.cached else None,
                train=True,
                freeze=phase.freeze,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(key, step_input.DROPOUT)},
            )
        if views > 1:
            each_view = logits.reshape(-1, views, logits.shape[-1])
            logits = each_view[:, 0]
        weights = batch.mask
        if batch.weight is not None:
            weights = batch.mask.astype(jnp.float32) * batch.weight
        total = objective.loss(
            adjust_logits(logits, step_config.logit_shift),
            batch.targets,
            class_weights,
            weights,
            step_config.label_smoothing,
            step_config.focal_gamma,
        )
        weigh = partial(
            weighted_sum, targets=batch.targets, class_weights=class_weights, mask=weights
        )
        if step_config.distill_weight:
            share, temperature = step_config.distill_weight, step_config.distill_temperature
            taught = weigh(distillation_loss(logits, batch.teacher, temperature))
            total = (1 - share) * total + share * taught
        if views > 1:
            total = total + step_config.consistency * weigh(jensen_shannon(each_view))
        correct = objective.correct(logits, batch.targets, batch.mask)
        # Dividing by the global count makes the gradients of devices and micro-batches sum to the
        # gradient of the mean.
        return total / count, (correct, updated.get("batch_stats", {}))

    def loss_and_gradient(batch_stats, batch):
        if teacher is not None:
            seen = batch.image[:, 0] if views > 1 else batch.image
            temperature = step_config.distill_temperature
            taught = online_teacher.probabilities(step_config.teachers, teacher, seen, temperature)
            batch = batch.replace(teacher=taught)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        params = variables["params"]
        (loss, (correct, batch_stats)), grads = value_and_grad(params, batch_stats, batch)
        return (loss, correct, grads), batch_stats

    (loss, correct, grads), batch_stats = _accumulate(
        step_config.accumulate_steps, loss_and_gradient, variables["batch_stats"], batch
    )
    loss, correct = _sum_over_devices(step_config, (loss, correct))
    sum_gradients = sum_gradients or partial(_sum_over_devices, step_config)
    return BatchSums(loss, correct, count, sum_gradients(grads), batch_stats)


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


def _sum_over_devices(step_config: StepConfig, tree: PyTree) -> PyTree:
    return tree if step_config.axis_name is None else lax.psum(tree, step_config.axis_name)
