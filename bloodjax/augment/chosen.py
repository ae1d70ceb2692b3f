"""Applies a function to some images of a batch only: those that chose it, in groups.

On a TPU, a branch per image does not skip anything: both sides are computed for all images. Here
the images that chose an effect are moved next to each other in groups of static size, and a loop
runs over as many groups as there are. The loop ends when every image that chose it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Num, PyTree

# The size of a group is a multiple of this number.
_MULTIPLE = 8


@flax.struct.dataclass
class Chosen:
    """Who chose what.

    Attributes:
      order: int32 [choices, images], for each choice the images that chose it; after them, numbers
        from the batch size on.
      count: int32 [choices], images that chose it.
    """

    order: Num[Array, "choices images"]
    count: Num[Array, " choices"]


def choose(flags: Sequence[Bool[Array, " batch"]]) -> Chosen:
    """Orders the images by each flag.

    Args:
      flags: For each choice, the images that chose it.
    """
    on = jnp.stack(list(flags))
    number = jnp.arange(on.shape[1], dtype=jnp.int32)
    rank = jnp.cumsum(on.astype(jnp.int32), axis=1) - 1
    here = on[:, None] & (rank[:, None] == number[None, :, None])
    order = jnp.where(here, number[None, None] - on.shape[1] - number[None, :, None], 0).sum(2)
    count = on.astype(jnp.int32).sum(1)
    return Chosen(order + on.shape[1] + number[None], count)


def group_size(share: float, batch: int, largest: int | None = None) -> int:
    """Images in a group, such that one group is mostly enough.

    Args:
      share: Expected share of the images that choose it.
      batch: Number of images.
      largest: Largest size of a group, for functions that need much memory for an image.
    """
    mean = share * batch
    enough = mean + math.sqrt(mean * (1 - min(share, 1.0)))
    size = _MULTIPLE * max(1, math.ceil(enough / _MULTIPLE))
    return min(size, batch, largest or batch)


def update(
    function: Callable[..., jax.Array],
    chosen: Chosen,
    choice: int,
    size: int,
    images: Num[Array, batch * rest],
    *params: PyTree,
) -> Num[Array, batch * rest]:
    """Replaces the images that chose a function by what it makes of them.

    Args:
      function: Function of a group of images and of its parameters, to new images.
      chosen: Who chose what.
      choice: Index of the choice.
      size: Images in a group.
      images: All images.
      *params: Parameters: trees of arrays with a leading axis for the batch.
    """
    batch = len(images)
    last = -(-batch // size) * size
    order = jnp.concatenate(
        [chosen.order[choice], batch + jnp.arange(batch, last, dtype=jnp.int32)]
    )

    def one_group(number, images):
        where = lax.dynamic_slice_in_dim(order, number * size, size)
        # Places after the last image are computed from that image and dropped.
        group = jnp.minimum(where, batch - 1)
        new = function(images[group], *jax.tree.map(lambda p: p[group], params))
        return images.at[where].set(new, mode="drop", unique_indices=True)

    groups = (chosen.count[choice] + size - 1) // size
    return lax.fori_loop(0, groups, one_group, images)
