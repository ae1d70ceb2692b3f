"""Compiles the pure steps: under jit over a mesh of devices, or under pmap."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.data.batches import StackedBatches
from bloodjax.data.lazy import Images
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.training import device_shares
from bloodjax.training.compiler_options import compiler_options
from bloodjax.training.predict_step import (
    describe_step,
    features_step,
    predict_step,
    views_step,
)
from bloodjax.training.step_config import Phase, StepConfig
from bloodjax.training.train_step import train_steps

# Batches of a prediction that may wait on the device. A split may be larger than its memory.
_IN_FLIGHT = 8


class _Compiled:
    """What both executors have: the text of training steps, the size of a batch of predictions."""

    step_config: StepConfig
    _mesh: jax.sharding.Mesh
    _train: Any

    @property
    def _prediction_size(self) -> int:
        """Images that are predicted at once: a training batch, rounded up to all devices.

        A run may be evaluated on more devices than it was trained on.
        """
        return math.ceil(self.step_config.batch_size / self._mesh.size) * self._mesh.size

    def lower(self, phase: Phase, num_steps: int, *arguments: PyTree) -> jax.stages.Lowered:
        """`train`, traced for arguments that may be `jax.ShapeDtypeStruct`, and not run."""
        return self._train.lower(phase, num_steps, *arguments)

    def program(self, phase: Phase, num_steps: int, *arguments: PyTree) -> str:
        """XLA's optimized HLO of `train`, with the names that a profiler's trace uses."""
        return self.lower(phase, num_steps, *arguments).compile().as_text()


class JitExecutor(_Compiled):
    """Runs steps under jit. The batch is split over the devices of all processes.

    Attributes:
      step_config: The parts of a step that are fixed for the run.
      layout: Sharding of the state and of a network's variables.
    """

    axis_name = None

    def __init__(
        self,
        step_config: StepConfig,
        devices: Sequence[jax.Device] | None = None,
        layout: str = "data",
    ):
        """Compiles nothing yet.

        Args:
          step_config: The parts of a step that are fixed for the run.
          devices: By default all devices of all processes.
          layout: "data" or "fsdp"; see `sharding.Layout`.
        """
        self.step_config = step_config
        self._mesh = sharding.mesh(devices)
        self.layout = sharding.Layout(self._mesh, layout)
        self._replicated = sharding.replicated(self._mesh)
        self._split = sharding.by_batch(self._mesh)
        platform = self._mesh.devices.flat[0].platform
        # If the state is split, `layout` shards each of its arrays inside the step.
        state_sharding = None if self.layout.splits else self._replicated
        self._train = jax.jit(
            partial(train_steps, step_config, layout=self.layout),
            static_argnums=(0, 1),
            donate_argnums=2,
            out_shardings=(state_sharding, self._replicated),
            compiler_options=compiler_options("training", platform),
        )
        prediction = {
            "in_shardings": (state_sharding, self._split),
            "out_shardings": self._replicated,
            "compiler_options": compiler_options("inference", platform),
        }
        self._predict = jax.jit(self._by_share(predict_step, 1), static_argnums=0, **prediction)
        self._each_view = jax.jit(self._by_share(views_step, 1), static_argnums=0, **prediction)
        self._describe = jax.jit(self._by_share(describe_step, 0), **prediction)
        self._features = jax.jit(self._by_share(features_step, 0), **prediction)

    def _by_share(self, step: Callable, position: int) -> Callable:
        """`step` with its first argument bound, of variables at `position` and of images."""

        @functools.wraps(step)
        def mapped(*arguments):
            first, (variables, images) = arguments[:position], arguments[position:]
            function = partial(step, self.step_config, *first)
            if self.layout.mesh.size == 1:
                return function(variables, images)
            model = self.step_config.model
            return device_shares.map_batch(self.layout, model, function, variables, images)

        return mapped

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies host arrays to every device."""
        return sharding.put(tree, self._replicated)

    def shard_state(self, tree: PyTree) -> PyTree:
        """Puts a state or a network's variables on the devices, sharded as `layout` says."""
        return sharding.put(tree, self.layout.of(tree))

    def unreplicate(self, tree: PyTree) -> PyTree:
        """The inverse of `replicate` and `shard_state`; the arrays stay on the devices."""
        return tree

    def local_rows(self) -> np.ndarray:
        """Indices of a batch's examples that this process's devices hold."""
        return sharding.local_rows(self._mesh, self.step_config.batch_size)

    def shard_batches(self, data: StackedBatches) -> StackedBatches:
        """Splits the `local_rows` of host batches over the devices, for `train`."""
        return sharding.put_rows(data, self._mesh, self.step_config.batch_size)

    def train(
        self, phase: Phase, num_steps: int, state, data, order, class_weights
    ) -> tuple[TrainState, Metrics]:
        """Runs `train_steps` on arrays that are on the devices. `state` is donated."""
        return self._train(phase, num_steps, state, data, order, class_weights)

    def predict(self, variables: PyTree, images: Images, views: str | TTAConfig) -> np.ndarray:
        """Probabilities [n, classes] of uint8 images [n, size, size, 3] on the host."""
        return self._in_shares(partial(self._predict, views, variables), images)

    def lower_predict(
        self, variables: PyTree, images: PyTree, views: str | TTAConfig
    ) -> jax.stages.Lowered:
        """`predict` of one batch, traced as by `lower`."""
        return self._predict.lower(views, variables, images)

    def lower_features(self, variables: PyTree, images: PyTree) -> jax.stages.Lowered:
        """`features` of one batch, traced as by `lower`."""
        return self._features.lower(variables, images)

    def each_view(self, variables: PyTree, images: Images, views: str) -> np.ndarray:
        """Probabilities [n, views, classes] of uint8 images on the host."""
        return self._in_shares(partial(self._each_view, views, variables), images)

    def describe(self, variables: PyTree, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Features [n, features] and logits [n, classes] of uint8 images on the host."""
        return self._in_shares(partial(self._describe, variables), images)

    def features(self, variables: PyTree, images: Images) -> np.ndarray:
        """Features [n, views, features] of uint8 images on the host; see `features_step`."""
        return self._in_shares(partial(self._features, variables), images)

    def _in_shares(self, function: Callable[[jax.Array], PyTree], images: Images) -> PyTree:
        def of_batch(batch):
            return function(sharding.put(batch, self._split))

        return _in_batches(of_batch, images, self._prediction_size)


class PmapExecutor(_Compiled):
    """Runs steps under pmap. The state has a leading axis with a copy for each device.

    Attributes:
      step_config: The parts of a step that are fixed for the run.
    """

    axis_name = sharding.AXIS
    layout = None

    def __init__(self, step_config: StepConfig, layout: str = "data"):
        """Compiles nothing yet.

        Raises:
          UserError: There are several processes, or `layout` is not "data".
        """
        if jax.process_count() > 1 or layout != "data":
            raise UserError(
                "config.parallel is 'pmap', expected jit for a run of several processes or with "
                "config.sharding fsdp"
            )
        self.step_config = step_config
        self._mesh = sharding.mesh()
        self._train = jax.pmap(
            partial(train_steps, step_config),
            axis_name=self.axis_name,
            static_broadcasted_argnums=(0, 1),
            donate_argnums=2,
        )
        self._predict = jax.pmap(
            partial(predict_step, step_config),
            axis_name=self.axis_name,
            static_broadcasted_argnums=0,
        )
        self._each_view = jax.pmap(
            partial(views_step, step_config), axis_name=self.axis_name, static_broadcasted_argnums=0
        )
        self._describe = jax.pmap(partial(describe_step, step_config), axis_name=self.axis_name)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies host arrays to every device, along a new leading axis."""
        return sharding.stack(tree, self._mesh)

    shard_state = replicate

    def unreplicate(self, tree: PyTree) -> PyTree:
        """The inverse of `replicate`; the arrays stay on their device."""
        return sharding.unstack(tree)

    def local_rows(self) -> np.ndarray:
        """Indices of a batch's examples that this process's devices hold: all."""
        return np.arange(self.step_config.batch_size)

    def shard_batches(self, data: StackedBatches) -> StackedBatches:
        """Splits host batches over the devices, for `train`."""
        return sharding.split(data, self._mesh)

    def train(
        self, phase: Phase, num_steps: int, state, data, order, class_weights
    ) -> tuple[TrainState, Metrics]:
        """Runs `train_steps` on arrays that are on the devices. `state` is donated."""
        state, metrics = self._train(phase, num_steps, state, data, order, class_weights)
        return state, sharding.unstack(metrics)

    def predict(self, variables: PyTree, images: Images, views: str | TTAConfig) -> np.ndarray:
        """Probabilities [n, classes] of uint8 images [n, size, size, 3] on the host."""
        return self._by_device(partial(self._predict, views, variables), images)

    def each_view(self, variables: PyTree, images: Images, views: str) -> np.ndarray:
        """Probabilities [n, views, classes] of uint8 images on the host."""
        return self._by_device(partial(self._each_view, views, variables), images)

    def describe(self, variables: PyTree, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Features [n, features] and logits [n, classes] of uint8 images on the host."""
        return self._by_device(partial(self._describe, variables), images)

    def _by_device(self, function: Callable[[np.ndarray], PyTree], images: Images) -> PyTree:
        def of_batch(batch):
            out = function(batch.reshape(self._mesh.size, -1, *batch.shape[1:]))
            return jax.tree.map(lambda a: a.reshape(len(batch), *a.shape[2:]), out)

        return _in_batches(of_batch, images, self._prediction_size)


def _in_batches(
    function: Callable[[np.ndarray], PyTree], images: Images, batch_size: int
) -> PyTree:
    """Applies `function` to batches of equal size. Results of the last batch's padding are cut."""
    results = []
    for start in range(0, len(images), batch_size):
        if len(results) >= _IN_FLIGHT:
            jax.block_until_ready(results[-_IN_FLIGHT][0])
        batch = images[start : start + batch_size]
        short = batch_size - len(batch)
        padded = np.pad(batch, ((0, short), (0, 0), (0, 0), (0, 0)))
        results.append((function(padded), len(batch)))
    cut = [jax.tree.map(lambda a, n=n: np.asarray(a)[:n], result) for result, n in results]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *cut)
