"""What the calls of an epoch take: images that stay on the device, or a stream from the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Int32, PyTree

from bloodjax import distributed
from bloodjax.config import Config
from bloodjax.data.batches import (
    DeviceDataset,
    StackedBatches,
    balanced_order,
    epoch_order,
    steps_per_epoch,
)
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import host_memory
from bloodjax.errors import UserError
from bloodjax.training.executor import JitExecutor, PmapExecutor

# The part of a device's memory that "auto" lets the images take; the rest is the training's.
_SHARE = 1 / 4

# Steps of a call, and the two arguments of `train` that say what they train on.
Call = tuple[int, DeviceDataset | StackedBatches, Int32[Array, "*n"] | None]


class TrainLoader:
    """A training part, epoch by epoch.

    Whether it stays on the device or streams, the batches and their order are the same.

    Attributes:
      steps: the training step that it feeds.
      per_epoch: steps in an epoch.
      on_device: whether the images stay there.
    """

    def __init__(self, config: Config, steps: JitExecutor | PmapExecutor, train: Dataset):
        """Puts the images on the device, where they are to stay there.

        Raises:
          UserError: there are fewer than one batch, or they cannot fit but must.
        """
        self.per_epoch = steps_per_epoch(len(train), config.batch_size)
        # Processes whose machines differ in memory go the same way.
        stays = stays_on_device(config.data.on_device, train.images.nbytes)
        self.on_device = all(distributed.exchange(stays))
        self.steps = steps
        self._config, self._train = config, train
        self._data = self._features = None
        if self.on_device:
            self._data = steps.replicate(DeviceDataset(np.asarray(train.images), train.labels))

    def cache(self, variables: PyTree) -> Iterator[int]:
        """Computes each image's features (`predict_step.features_step`), if they are not at hand.

        Args:
          variables: of the frozen backbone.

        Yields:
          How many images are done.
        """
        if self._features is not None:
            return
        images, computed = self._train.images, []
        for start in range(0, len(images), self._config.batch_size):
            batch = images[start : start + self._config.batch_size]
            computed.append(self.steps.features(variables, batch))
            yield start + len(batch)
        self._features = self.steps.replicate(
            DeviceDataset(np.concatenate(computed), self._train.labels)
        )

    def calls(self, epoch: int, done: int, cached: bool = False) -> Iterator[Call]:
        """What each call of `epoch` takes, from its step `done` on; to be closed after use.

        Args:
          epoch: counted from the run's begin.
          done: steps of it that are over.
          cached: features in place of images, which `cache` has computed.
        """
        at_once = self._config.steps_per_call
        order = self._order(epoch)
        starts = range(done, self.per_epoch, at_once)
        lengths = [min(at_once, self.per_epoch - start) for start in starts]
        if not cached:
            self._features = None  # a later phase has no use for them
        resident = self._features if cached else self._data
        if resident is not None:
            order = self.steps.replicate(order)
            yield from ((steps, resident, order) for steps in lengths)
        else:
            yield from self._streamed(np.asarray(order), starts, lengths)

    def _order(self, epoch: int) -> Int32[Array, "*n"]:
        seed, train = self._config.seed, self._train
        if self._config.data.oversample:
            size = self.per_epoch * self._config.batch_size
            return balanced_order(seed, epoch, train.labels, len(train.classes), size)
        return epoch_order(seed, epoch, len(train))

    def _streamed(self, order, starts, lengths) -> Iterator[Call]:
        from bloodjax.data import prefetch  # grain takes its time, and most runs do without

        batch = self._config.batch_size
        batches = order[: self.per_epoch * batch].reshape(self.per_epoch, batch)
        batches = batches[:, self.steps.local_rows()]
        index = [batches[start : start + n] for start, n in zip(starts, lengths, strict=True)]
        images, labels = self._train.images, self._train.labels
        with contextlib.closing(
            prefetch.read(images, labels, index, self.steps.shard_batches)
        ) as read:
            for steps, data in zip(lengths, read, strict=True):
                yield steps, data, None


def stays_on_device(on_device: str, size: int, memory: int | None = None) -> bool:
    """Whether images of `size` bytes stay on each device.

    Args:
      on_device: "always", "never", or "auto", where they do if they take at most a quarter of its
        memory.
      size: of the images in bytes.
      memory: of each device in bytes; by default as found.

    Raises:
      UserError: they always should, but are larger than its memory.
    """
    memory = device_memory() if memory is None else memory
    if on_device == "always" and size > memory:
        raise UserError(
            f"config.data.on_device is always, but the training images take {size:,} bytes of "
            f"each device's {memory:,}: expected auto or never"
        )
    return on_device == "always" or (on_device == "auto" and size <= _SHARE * memory)


def device_memory() -> int:
    """Bytes of memory that each device has; on CPU, its share of the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_memory() // jax.local_device_count()
