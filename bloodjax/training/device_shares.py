"""A step on several devices: each computes with its share of the batch, and says what it sends.

The compiler could partition a step by itself. It then sums the gradients in each micro-batch, and
gathers the maps that a loop over examples reads, as those of `ops.conv` and `ops.pointwise` do. On
TPUs it scatters the sum of a split parameter's gradient in a loop of small matrix products, and
that of others as a full sum; and it cannot partition kernels that are written in Pallas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from bloodjax.distributed import sharding
from bloodjax.models.head import Network
from bloodjax.training import gradients, optim
from bloodjax.training.gradients import BatchSums
from bloodjax.training.step_config import Phase, StepConfig

_EVERY, _SPLIT = PartitionSpec(), PartitionSpec(sharding.AXIS)


def batch_sums(
    layout: sharding.Layout,
    step_config: StepConfig,
    phase: Phase,
    variables: PyTree,
    *arguments: PyTree,
) -> BatchSums:
    """Under jit: `gradients.batch_sums` of the global batch.

    Args:
      layout: Sharding of the variables, and of the gradients and statistics that are returned.
      step_config: The parts of a step that are fixed for the run.
      phase: The parts that differ between phases.
      variables: The parameters and BatchNorm's running statistics.
      *arguments: The step, the batch and the class weights.
    """
    model, names = step_config.model, {"axis_name": sharding.AXIS}
    model = model.clone(backbone=model.backbone.clone(**names), head=model.head.clone(**names))
    step_config = dataclasses.replace(step_config, model=model, **names)
    params, stats = variables["params"], variables["batch_stats"]
    specs, dtypes = layout.specs(variables), _compute_dtypes(model, params)
    labels = optim.freeze_labels(params, stats, phase.freeze)
    trained = jax.tree.map(lambda label: label == "train", labels)

    def on_device(variables, *arguments):
        full = {
            "params": layout.gather(variables["params"], specs["params"], dtypes),
            "batch_stats": layout.gather(variables["batch_stats"], specs["batch_stats"]),
        }
        sums = gradients.batch_sums(
            step_config,
            phase,
            full,
            *arguments,
            sum_gradients=lambda grads: layout.reduce(grads, specs["params"], dtypes, trained),
        )
        return sums._replace(batch_stats=layout.part(sums.batch_stats, specs["batch_stats"]))

    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(specs, _EVERY, _SPLIT, _EVERY),
        out_specs=BatchSums(_EVERY, _EVERY, _EVERY, specs["params"], specs["batch_stats"]),
        check_vma=False,
    )(variables, *arguments)


def map_batch(
    layout: sharding.Layout,
    model: Network,
    function: Callable[[PyTree, Array], PyTree],
    variables: PyTree,
    images: Array,
) -> PyTree:
    """Under jit: `function(variables, images)`, which gives results for each image.

    Args:
      layout: Sharding of `variables`.
      model: The network that `function` applies.
      function: Function of the full variables and of this device's share of the images.
      variables: The network's variables.
      images: Images, split over the devices.
    """
    specs, dtypes = layout.specs(variables), _compute_dtypes(model, variables)
    return jax.shard_map(
        lambda parts, share: function(layout.gather(parts, specs, dtypes), share),
        mesh=layout.mesh,
        in_specs=(specs, _SPLIT),
        out_specs=_SPLIT,
        check_vma=False,
    )(variables, images)


def _compute_dtypes(model: Network, variables: PyTree) -> PyTree:
    """The dtype of each of a network's variables in which a step computes with it.

    Kernels are cast to the network's dtype before they are used, except that of the logits. Biases
    and scales, of which there are few, may be used in float32.
    """

    def dtype(path, leaf):
        names = [key.key for key in path]
        in_float32 = names[-1] != "kernel" or names[-3:-1] == ["head", "logits"]
        return leaf.dtype if in_float32 else jnp.dtype(model.backbone.dtype)

    return jax.tree_util.tree_map_with_path(dtype, variables)
