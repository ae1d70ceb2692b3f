"""The one place that compiles the pure steps: under jit over a mesh of devices, or under pmap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.data.batches import StackedBatches
from bloodjax.data.lazy import Images
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.training.predict_step import features_step, predict_step, views_step
from bloodjax.training.train_step import Phase, StepConfig, train_steps

# Batches of images to predict that may wait on the device: a part may be larger than its memory.
_UNDER_WAY = 8


class _Compiled:
    """What compiled training steps can tell of themselves, however they were compiled."""

    _train: Any

    def program(self, phase: Phase, steps: int, *arguments: PyTree) -> str:
        """The text of what XLA made of `train`, with the names that a profile's trace has."""
        return self._train.lower(phase, steps, *arguments).compile().as_text()


class JitExecutor(_Compiled):
    """The steps under jit: the batch split over the devices, of all processes.

    Attributes:
      layout: how the state and a network's variables lie on them.
    """

    axis_name = None

    def __init__(
        self, recipe: StepConfig, devices: Sequence[jax.Device] | None = None, layout: str = "data"
    ):
        self._mesh = sharding.mesh(devices)
        self._recipe = recipe
        self.layout = sharding.Layout(self._mesh, layout)
        self._whole = sharding.replicated(self._mesh)
        self._split = sharding.by_batch(self._mesh)
        # Where the state is split, each of its arrays goes its own way, as `layout` has it.
        of_state = None if self.layout.splits else self._whole
        self._train = jax.jit(
            partial(train_steps, recipe, split=self._split, layout=self.layout),
            static_argnums=(0, 1),
            donate_argnums=2,
            out_shardings=(of_state, self._whole),
        )
        prediction = {
            "in_shardings": (of_state, self._split),
            "out_shardings": self._whole,
        }
        self._predict = jax.jit(self._whole_in(predict_step, 1), static_argnums=0, **prediction)
        self._each_view = jax.jit(self._whole_in(views_step, 1), static_argnums=0, **prediction)
        self._features = jax.jit(self._whole_in(features_step, 0), **prediction)

    def _whole_in(self, step: Callable, position: int) -> Callable:
        """`step` of the recipe, with the variables, its argument at `position`, gathered."""

        @functools.wraps(step)
        def gathering(*arguments):
            arguments = list(arguments)
            arguments[position] = self.layout.gathered(arguments[position])
            return step(self._recipe, *arguments)

        return gathering

    def replicate(self, tree: PyTree) -> PyTree:
        """Host arrays, of which each device gets all, as `train` takes them."""
        return sharding.put(tree, self._whole)

    def shard_state(self, tree: PyTree) -> PyTree:
        """A state or a network's variables as `train` and `predict` take them."""
        return sharding.put(tree, self.layout.of(tree))

    def unreplicate(self, tree: PyTree) -> PyTree:
        """The inverse of `replicate` and `shard_state`, without leaving the devices."""
        return tree

    def local_rows(self) -> np.ndarray:
        """Which examples of each batch `shard_batches` takes: those of this process's devices."""
        return sharding.local_rows(self._mesh, self._recipe.batch_size)

    def shard_batches(self, data: StackedBatches) -> StackedBatches:
        """The `local_rows` of a call's batches on the host, split over the devices for `train`."""
        return sharding.put_rows(data, self._mesh, self._recipe.batch_size)

    def train(
        self, phase: Phase, steps: int, state, data, order, class_weights
    ) -> tuple[TrainState, Metrics]:
        """See `train_steps`; the arrays placed. `state` is donated."""
        return self._train(phase, steps, state, data, order, class_weights)

    def predict(self, variables: PyTree, images: Images, views: str | TTAConfig) -> np.ndarray:
        """Probabilities [n, classes] of uint8 images [n, size, size, 3] on the host."""
        return _in_batches(
            lambda batch: self._predict(views, variables, sharding.put(batch, self._split)),
            images,
            self._recipe.batch_size,
        )

    def each_view(self, variables: PyTree, images: Images, views: str) -> np.ndarray:
        """Probabilities [n, views, classes] of uint8 images on the host."""
        return _in_batches(
            lambda batch: self._each_view(views, variables, sharding.put(batch, self._split)),
            images,
            self._recipe.batch_size,
        )

    def features(self, variables: PyTree, images: Images) -> np.ndarray:
        """Features [n, views, features] of uint8 images on the host; see `features_step`."""
        return _in_batches(
            lambda batch: self._features(variables, sharding.put(batch, self._split)),
            images,
            self._recipe.batch_size,
        )

    @property
    def compilations(self) -> int:
        """How many variants of the training step have been compiled."""
        return self._train._cache_size()


class PmapExecutor(_Compiled):
    """The steps under pmap: a copy of the state for each device along a leading axis.

    Raises:
      UserError: there are several processes, or the state is to be split.
    """

    axis_name = sharding.AXIS
    layout = None

    def __init__(self, recipe: StepConfig, layout: str = "data"):
        if jax.process_count() > 1 or layout != "data":
            raise UserError(
                "config.parallel is 'pmap', expected jit for a run of several processes or with "
                "config.sharding fsdp"
            )
        self._recipe = recipe
        self._mesh = sharding.mesh()
        self._train = jax.pmap(
            partial(train_steps, recipe),
            axis_name=self.axis_name,
            static_broadcasted_argnums=(0, 1),
            donate_argnums=2,
        )
        self._predict = jax.pmap(
            partial(predict_step, recipe), axis_name=self.axis_name, static_broadcasted_argnums=0
        )
        self._each_view = jax.pmap(
            partial(views_step, recipe), axis_name=self.axis_name, static_broadcasted_argnums=0
        )

    def replicate(self, tree: PyTree) -> PyTree:
        """Host arrays as `train` and `predict` take them."""
        return sharding.stack(tree, self._mesh)

    shard_state = replicate

    def unreplicate(self, tree: PyTree) -> PyTree:
        """The inverse of `replicate`, without leaving the devices."""
        return sharding.unstack(tree)

    def local_rows(self) -> np.ndarray:
        """Which examples of each batch `shard_batches` takes: all."""
        return np.arange(self._recipe.batch_size)

    def shard_batches(self, data: StackedBatches) -> StackedBatches:
        """A call's batches on the host as `train` takes them, each split over the devices."""
        return sharding.split(data, self._mesh)

    def train(
        self, phase: Phase, steps: int, state, data, order, class_weights
    ) -> tuple[TrainState, Metrics]:
        """See `train_steps`; the arrays placed. `state` is donated."""
        state, metrics = self._train(phase, steps, state, data, order, class_weights)
        return state, sharding.unstack(metrics)

    def predict(self, variables: PyTree, images: Images, views: str | TTAConfig) -> np.ndarray:
        """Probabilities [n, classes] of uint8 images [n, size, size, 3] on the host."""
        return self._by_device(partial(self._predict, views, variables), images)

    def each_view(self, variables: PyTree, images: Images, views: str) -> np.ndarray:
        """Probabilities [n, views, classes] of uint8 images on the host."""
        return self._by_device(partial(self._each_view, views, variables), images)

    def _by_device(self, function: Callable[[np.ndarray], Array], images: Images) -> np.ndarray:
        def of_batch(batch):
            out = function(batch.reshape(self._mesh.size, -1, *batch.shape[1:]))
            return out.reshape(len(batch), *out.shape[2:])

        return _in_batches(of_batch, images, self._recipe.batch_size)


def _in_batches(
    function: Callable[[np.ndarray], Array], images: Images, batch_size: int
) -> np.ndarray:
    """Applies `function` to whole batches; the last is filled up, and what filled it left out."""
    results = []
    for start in range(0, len(images), batch_size):
        if len(results) >= _UNDER_WAY:
            jax.block_until_ready(results[-_UNDER_WAY][0])
        batch = images[start : start + batch_size]
        short = batch_size - len(batch)
        padded = np.pad(batch, ((0, short), (0, 0), (0, 0), (0, 0)))
        results.append((function(padded), len(batch)))
    return np.concatenate([np.asarray(result)[:n] for result, n in results])
