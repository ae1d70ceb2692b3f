"""A network with its weights as functions of images on the host, for calls of any size.

A call is split into batches of a few sizes, so that one image costs little more than its share of a
large batch. Each size is compiled when it is first needed, and kept.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from bloodjax.augment import views as views_lib
from bloodjax.augment.tta import TTAConfig
from bloodjax.data.lazy import Images
from bloodjax.models import folding
from bloodjax.training.compiler_options import compiler_options
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.predict_step import describe_step, predict_step, views_step

# Fixed cost of a batch, in images: what it costs to split a call further.
_OVERHEAD = 0.5
# A batch of a middle size, for calls of a few images.
_FEW = 8
# Images of a batch on a CPU, counting each view: per core at 96 px, and at most. Larger batches are
# slower, because their maps do not fit into the cache.
_PER_CORE, _PIXELS, _MOST = 8, 96**2, 64
# From this number of largest batches on, a call has no batches of other sizes.
_MANY = 4
# Blocks of images that may wait on the device; lazy images are read in such blocks.
_IN_FLIGHT = 8


class Predictor:
    """Computes probabilities, features and logits of images; several threads may use it at once.

    On one device, BatchNorm is folded into the convolutions (`models.folding`), and calls are split
    into batches of a few sizes. On several devices, and under pmap, every batch has the size of a
    training batch. The results are the same up to rounding.

    Attributes:
      step_config: The network and the normalisation of its input.
    """

    def __init__(self, executor: JitExecutor | PmapExecutor, variables: PyTree):
        """Compiles nothing yet.

        Args:
          executor: Compiles the steps for several devices.
          variables: The network's variables, on the host or on a device.
        """
        self.step_config = executor.step_config
        mesh = executor.layout.mesh if isinstance(executor, JitExecutor) else None
        on_one_device = mesh is not None and mesh.size == 1
        self._executor = None if on_one_device else executor
        self._device = mesh.devices.flat[0] if on_one_device else None
        self._given = variables
        self._lock = threading.Lock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._made: dict[Hashable, object] = {}

    @property
    def variables(self) -> PyTree:
        """The network's variables, on the devices."""
        if self._executor:
            return self._executor.unreplicate(self._placed())
        return self._once("variables", lambda: jax.device_put(self._given, self._device))

    def predict(self, images: Images, views: TTAConfig) -> Float[np.ndarray, "n *answers classes"]:
        """Class probabilities of uint8 images [n, size, size, 3] of the network's size.

        Args:
          images: At least one image.
          views: The views; see `augment.tta.probabilities`.
        """
        if self._executor:
            return self._executor.predict(self._placed(), images, views)
        count = len(views.weights) or len(views_lib.named(views.views))
        return self._in_batches(predict_step, (views,), count + views.with_plain, images)

    def each_view(self, images: Images, views: str) -> Float[np.ndarray, "n views classes"]:
        """Class probabilities of at least one image in each view of the sets `views`."""
        if self._executor:
            return self._executor.each_view(self._placed(), images, views)
        return self._in_batches(views_step, (views,), len(views_lib.named(views)), images)

    def describe(
        self, images: Images
    ) -> tuple[Float[np.ndarray, "n features"], Float[np.ndarray, "n classes"]]:
        """Features and logits of at least one unmodified image, in float32."""
        if self._executor:
            return self._executor.describe(self._placed(), images)
        return self._in_batches(describe_step, (), 1, images)

    def _placed(self) -> PyTree:
        return self._once("placed", lambda: self._executor.shard_state(self._given))

    def _in_batches(self, step: Callable, fixed: tuple, views: int, images: Images) -> PyTree:
        """Applies `step`, with `fixed` as its first arguments, to batches that are padded."""
        sizes = _batch_sizes(views, images.shape[1], self.step_config.batch_size)
        if len(images) >= _MANY * sizes[-1]:
            sizes = sizes[-1:]  # A little padding costs less than compiling other sizes.
        most = max(1, self.step_config.batch_size // sizes[-1])  # Batches of a block.
        block, results = most * sizes[-1], []
        for start in range(0, len(images), block):
            if start > 0:
                jax.block_until_ready(results[-most * _IN_FLIGHT :][0][0])
            several = images[start : start + block]
            first = 0
            for size in split(len(several), sizes):
                batch = several[first : first + size]
                first += size
                if len(batch) < size:
                    batch = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
                program, weights = self._compiled(step, fixed, batch.shape)
                results.append((program(weights, batch), min(size, len(several) - first + size)))
        cut = [jax.tree.map(lambda a, n=n: np.asarray(a)[:n], result) for result, n in results]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *cut)

    def _compiled(self, step: Callable, fixed: tuple, shape: tuple[int, ...]):
        """The compiled step for uint8 images of a shape, and its first argument."""
        weights, structure = self._once(
            ("weights", shape[1]), lambda: self._folded_weights(shape[1])
        )

        def compile_step():
            def function(weights, images):
                variables = jax.tree.unflatten(structure, weights)
                return step(self.step_config, *fixed, variables, images)

            images = jax.ShapeDtypeStruct(shape, jnp.uint8)
            options = compiler_options("inference", self._device.platform)
            return jax.jit(function, compiler_options=options).lower(weights, images).compile()

        return self._once((step, fixed, shape), compile_step), weights

    def _folded_weights(self, size: int) -> tuple[list[jax.Array], jax.tree_util.PyTreeDef]:
        """The leaves of the folded variables, on the device, and their structure."""
        folded = folding.fold(self.step_config.model, self._given, size)
        # A list is passed to a compiled program faster than a nested dictionary.
        return jax.tree.flatten(jax.device_put(folded, self._device))

    def _once(self, key: Hashable, make: Callable[[], object]):
        """The result of `make`, which the first thread computes while others wait for it."""
        if key not in self._made:
            with self._lock:
                lock = self._locks.setdefault(key, threading.Lock())
            with lock:
                if key not in self._made:
                    self._made[key] = make()
        return self._made[key]


@functools.cache
def _batch_sizes(views: int, size: int, batch_size: int) -> tuple[int, ...]:
    """Sizes of the batches that calls are split into, ascending; the first is 1.

    Args:
      views: Number of views of each image.
      size: Side of the images in pixels.
      batch_size: Size of a training batch, which fits into an accelerator's memory.
    """
    most = batch_size
    if jax.default_backend() == "cpu":
        rows = _PER_CORE * (os.cpu_count() or 1) * _PIXELS // size**2
        most = max(1, min(rows, _MOST) // views)
    return tuple(sorted({1, min(_FEW, most), most}))


def split(n: int, sizes: tuple[int, ...]) -> list[int]:
    """Sizes of the batches for `n` images, at the least cost; only the last may be padded.

    Args:
      n: Number of images.
      sizes: Sizes that a batch may have, ascending.
    """
    found = []
    for i in reversed(range(len(sizes))):
        found += [sizes[i]] * (n // sizes[i])
        n %= sizes[i]
        if n and (i == 0 or _cost(n, sizes[:i]) >= sizes[i] + _OVERHEAD):
            return [*found, sizes[i]]
    return found


def _cost(n: int, sizes: tuple[int, ...]) -> float:
    """Cost of `n` images in batches without padding."""
    cost = 0.0
    for size in sizes[::-1]:
        cost += n // size * (size + _OVERHEAD)
        n %= size
    return cost
