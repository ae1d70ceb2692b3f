"""Batches read on the host while the device computes. The one module that imports grain.

One item of the pipeline is all that one call to the device takes: grain's threads gather whole
batches by index and send them off; the loop only ever picks up what is on the device already. From
an array that copies memory; images that are unread are read and decoded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from bloodjax.data.batches import StackedBatches
from bloodjax.data.lazy import Images

# Calls that are read ahead of the one that the device computes, each by a thread of its own.
_AHEAD = 2


def read(
    images: Images,
    labels: Int32[np.ndarray, " n"],
    calls: Sequence[Int32[np.ndarray, "_ batch"]],
    place: Callable[[StackedBatches], Any],
) -> Iterator[Any]:
    """What each of `calls` takes, in their order.

    Closing the iterator ends its threads.

    Args:
      images: of the data set: in memory, mapped into it, or unread.
      labels: of the data set.
      calls: for each call, where the images of its steps stand in the data set.
      place: puts the batches of a call on the devices; called from the threads.

    Yields:
      `place(StackedBatches)` of each call.

    Raises:
      Exception: whatever reading or placing raised, as it is, at the call that it belongs to.
    """

    def gather(index):
        return place(StackedBatches(images[index], labels[index]))

    pipeline = grain.MapDataset.source(calls).map(gather)
    options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
    iterator = iter(pipeline.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
