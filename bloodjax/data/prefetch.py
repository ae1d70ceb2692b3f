"""Reads batches on the host while the device computes. The only module that imports grain.

One item of the grain pipeline holds all batches of one dispatch. Grain's threads gather the
batches by index, which reads and decodes lazy images, and send them to the device, so the training
loop only receives batches that are already there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int32

from bloodjax.data.batches import StackedBatches
from bloodjax.data.lazy import Images

# Dispatches that are read ahead of the one that the device computes, each by its own thread.
_AHEAD = 2


def prefetch(
    images: Images,
    labels: Int32[np.ndarray, "n ..."],
    calls: Sequence[Int32[np.ndarray, "_ batch"]],
    to_device: Callable[[StackedBatches], Any],
    teacher: Float32[np.ndarray, "n classes"] | None = None,
    weights: Float32[np.ndarray, " n"] | None = None,
) -> Iterator[Any]:
    """Yields the batches of each dispatch, in order.

    Closing the iterator ends its threads.

    Args:
      images: Images of the dataset: in memory, memory-mapped or lazy.
      labels: Labels of each image, as in `Dataset`.
      calls: For each dispatch, the indices of its images, [steps, batch].
      to_device: Copies the batches of a dispatch to the devices; called from the threads.
      teacher: A teacher's class probabilities of each image, or None.
      weights: Factor of each image's loss, or None.

    Yields:
      `to_device(StackedBatches)` of each dispatch.

    Raises:
      Exception: An error of reading or of `to_device`, unchanged, at the dispatch it belongs to.
    """

    def gather(index):
        taught = None if teacher is None else teacher[index]
        weight = None if weights is None else weights[index]
        return to_device(StackedBatches(images[index], labels[index], taught, weight))

    pipeline = grain.MapDataset.source(calls).map(gather)
    options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
    iterator = iter(pipeline.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
