"""The training images, epoch by epoch: kept on the device, or streamed from the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int32, PyTree

from bloodjax import config as config_lib
from bloodjax import distributed
from bloodjax.config import Config
from bloodjax.data.batches import (
    DeviceDataset,
    StackedBatches,
    epoch_order,
    sampled_order,
    steps_per_epoch,
)
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.io.host_memory import host_memory
from bloodjax.training.executor import JitExecutor, PmapExecutor

# Fraction of a device's memory that "auto" lets the images take. Training needs the rest.
_MEMORY_FRACTION = 1 / 4


class StepInputs(NamedTuple):
    """What one dispatch of training steps takes from the data.

    Attributes:
      num_steps: Number of steps that the dispatch runs.
      data: All training images (or their features), or the batches of these steps.
      order: Order of the images in the epoch; None if `data` are batches.
    """

    num_steps: int
    data: DeviceDataset | StackedBatches
    order: Int32[Array, "*n"] | None


class TrainLoader:
    """Feeds the training split to an executor, epoch by epoch.

    The batches and their order do not depend on whether the images stay on the device.

    Attributes:
      executor: Runs the training steps.
      steps_per_epoch: Number of steps in an epoch.
      on_device: Whether the images stay on the device.
    """

    def __init__(
        self,
        config: Config,
        executor: JitExecutor | PmapExecutor,
        train: Dataset,
        teacher: Float32[np.ndarray, "n classes"] | None = None,
    ):
        """Copies the images to the device if they stay there.

        Args:
          config: Config of the run.
          executor: Runs the training steps.
          train: Training split.
          teacher: A teacher's class probabilities of each image, or None without a teacher.

        Raises:
          UserError: There are fewer images than one batch, or `config.data.on_device` is "always"
            and they do not fit.
        """
        self.executor = executor
        self.steps_per_epoch = steps_per_epoch(len(train), config.batch_size)
        # Processes on machines with different memory decide alike.
        stays = stays_on_device(config.data.on_device, train.images.nbytes)
        self.on_device = all(distributed.exchange(stays))
        self._config, self._train, self._teacher = config, train, teacher
        self._features: DeviceDataset | None = None
        self._data: DeviceDataset | None = None
        if self.on_device:
            self._data = executor.replicate(
                DeviceDataset.of(np.asarray(train.images), train.labels, teacher, train.weights)
            )

    def cache_features(self, variables: PyTree) -> Iterator[int]:
        """Computes the features of each image (`predict_step.features_step`), unless cached.

        Args:
          variables: The network's variables, with a frozen backbone.

        Yields:
          The number of images that are done.
        """
        if self._features is not None:
            return
        images, computed = self._train.images, []
        for start in range(0, len(images), self._config.batch_size):
            batch = images[start : start + self._config.batch_size]
            computed.append(self.executor.features(variables, batch))
            yield start + len(batch)
        self._features = self.executor.replicate(
            DeviceDataset.of(
                np.concatenate(computed), self._train.labels, self._teacher, self._train.weights
            )
        )

    def epoch(
        self,
        index: int,
        first_step: int = 0,
        cached: bool = False,
        steps_per_call: int | None = None,
    ) -> Iterator[StepInputs]:
        """The inputs of each dispatch of an epoch. Close the iterator after use.

        Args:
          index: Index of the epoch, counted from the start of the run.
          first_step: Step of the epoch to start at.
          cached: Whether to give the features from `cache_features` instead of images.
          steps_per_call: Steps of each dispatch; by default the config's.
        """
        steps_per_call = steps_per_call or self._config.steps_per_call
        order = self._order(index)
        starts = range(first_step, self.steps_per_epoch, steps_per_call)
        lengths = [min(steps_per_call, self.steps_per_epoch - start) for start in starts]
        if not cached:
            self._features = None  # later phases do not use them
        resident = self._features if cached else self._data
        if resident is not None:
            order = self.executor.replicate(order)
            yield from (StepInputs(num_steps, resident, order) for num_steps in lengths)
        else:
            yield from self._streamed(np.asarray(order), starts, lengths)

    def _order(self, epoch: int) -> Int32[Array, "*n"]:
        seed, train = self._config.seed, self._train
        exponent = config_lib.sampling_exponent(self._config)
        if exponent == 1:
            return epoch_order(seed, epoch, len(train))
        size = self.steps_per_epoch * self._config.batch_size
        return sampled_order(seed, epoch, train.labels, len(train.classes), size, exponent)

    def _streamed(self, order, starts, lengths) -> Iterator[StepInputs]:
        # Importing grain takes long, and most runs do not stream.
        from bloodjax.data import prefetch

        batch_size = self._config.batch_size
        batches = order[: self.steps_per_epoch * batch_size].reshape(-1, batch_size)
        batches = batches[:, self.executor.local_rows()]
        index = [batches[start : start + n] for start, n in zip(starts, lengths, strict=True)]
        train = self._train
        with contextlib.closing(
            prefetch.prefetch(
                train.images,
                train.labels,
                index,
                self.executor.shard_batches,
                self._teacher,
                train.weights,
            )
        ) as prefetched:
            for num_steps, data in zip(lengths, prefetched, strict=True):
                yield StepInputs(num_steps, data, None)


def stays_on_device(on_device: str, size: int, memory: int | None = None) -> bool:
    """Whether the training images stay on each device.

    Args:
      on_device: "always", "never" or "auto". With "auto" they stay if they take at most a quarter
        of the device's memory.
      size: Size of the images in bytes.
      memory: Memory of each device in bytes; by default it is detected.

    Raises:
      UserError: `on_device` is "always", and the images are larger than the memory.
    """
    memory = device_memory() if memory is None else memory
    if on_device == "always" and size > memory:
        raise UserError(
            f"config.data.on_device is always, but the training images take {size:,} bytes of "
            f"each device's {memory:,}: expected auto or never"
        )
    return on_device == "always" or (on_device == "auto" and size <= _MEMORY_FRACTION * memory)


def device_memory() -> int:
    """Memory of each device in bytes; on CPU, its share of the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_memory() // jax.local_device_count()
