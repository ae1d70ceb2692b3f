"""Batches: gathered on the device from pictures that live there, or handed in from the host.

The order is a pure function of (seed, epoch), so a step number is all that a resumed run needs.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt8

from bloodjax.errors import UserError


@flax.struct.dataclass
class DeviceData:
    """A data set's pictures and labels, whole, on the device.

    Attributes:
      images: uint8 [n, size, size, 3], or features of every view of them (`steps.features_step`).
      labels: int32 [n].
    """

    # As a tree, each field may hold a stack of copies as well.
    images: PyTree
    labels: PyTree


@flax.struct.dataclass
class CallData:
    """The pictures and labels of one call's steps alone, batch by batch.

    Attributes:
      images: uint8 [steps, batch, size, size, 3].
      labels: int32 [steps, batch].
    """

    # As a tree, each field may be split over a leading axis of devices as well.
    images: PyTree
    labels: PyTree


@flax.struct.dataclass
class Batch:
    """What a step takes.

    Attributes:
      image: pictures or features.
      label: class of each.
      mask: False where an example is padding.
      targets: what part of each example is of each class; the step fills them in.
    """

    image: UInt8[Array, "batch size size 3"] | Float[Array, "batch ..."]
    label: Int32[Array, " batch"]
    mask: Bool[Array, " batch"]
    targets: Float[Array, "batch classes"] | None = None


@partial(jax.jit, static_argnames="n")
def epoch_order(
    seed: int | Int32[Array, ""], epoch: int | Int32[Array, ""], n: int
) -> Int32[Array, " n"]:
    """The order in which an epoch visits `n` pictures: each once."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of its order, different each time, is left out.

    Raises:
      UserError: there is not even one.
    """
    if n < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training part has {n} pictures: "
            "expected at most as many"
        )
    return n // batch_size


@jax.named_scope("input")
def gather(
    data: DeviceData, order: Int32[Array, " n"], start: Int32[Array, ""], size: int
) -> Batch:
    """The pictures that stand at `order[start : start + size]`."""
    index = lax.dynamic_slice(order, (start,), (size,))
    return Batch(data.images[index], data.labels[index], jnp.ones(size, bool))


def nth(data: CallData, i: int | Int32[Array, ""]) -> Batch:
    """The batch of a call's step `i`."""
    labels = data.labels[i]
    return Batch(data.images[i], labels, jnp.ones(labels.shape, bool))
