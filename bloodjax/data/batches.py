"""Batches: gathered on the device from images that live there, or handed in from the host.

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
class DeviceDataset:
    """A data set's images and labels, whole, on the device.

    Attributes:
      images: uint8 [n, size, size, 3], or features of every view (`predict_step.features_step`).
      labels: int32 [n].
    """

    # As a tree, each field may hold a stack of copies as well.
    images: PyTree
    labels: PyTree


@flax.struct.dataclass
class StackedBatches:
    """The images and labels of one call's steps alone, batch by batch.

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
      image: images or features.
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
    """The order in which an epoch visits `n` images: each once."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))


@partial(jax.jit, static_argnames=("num_classes", "size"))
def balanced_order(
    seed: int | Int32[Array, ""],
    epoch: int | Int32[Array, ""],
    labels: Int32[Array, " n"],
    num_classes: int,
    size: int,
) -> Int32[Array, " size"]:
    """An order of `size` images in which all classes stand equally often, but for one image.

    Of each class, every image stands as often as any other, again but for one time; which ones
    have that one more, or have none at all, differs from epoch to epoch.

    Args:
      seed: of the run.
      epoch: counted from the run's begin.
      labels: of the data set; each class has an image.
      num_classes: number of classes.
      size: of the order.
    """
    shuffled = epoch_order(seed, epoch, len(labels))
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)]
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    first = jnp.cumsum(counts) - counts
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    # epoch_order has drawn from the key itself.
    class_key, place_key = jax.random.split(jax.random.fold_in(key, 1))
    # Classes take turns, and each one's images do; then all places are shuffled.
    turn = jnp.arange(size, dtype=jnp.int32)
    classes = jax.random.permutation(class_key, jnp.arange(num_classes, dtype=jnp.int32))
    drawn = classes[turn % num_classes]
    picked = by_class[first[drawn] + turn // num_classes % counts[drawn]]
    return jax.random.permutation(place_key, picked)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of its order, different each time, is left out.

    Raises:
      UserError: there is not even one.
    """
    if n < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training part has {n} images: "
            "expected at most as many"
        )
    return n // batch_size


@jax.named_scope("input")
def gather(
    data: DeviceDataset, order: Int32[Array, " n"], start: Int32[Array, ""], size: int
) -> Batch:
    """The images that stand at `order[start : start + size]`."""
    index = lax.dynamic_slice(order, (start,), (size,))
    return Batch(data.images[index], data.labels[index], jnp.ones(size, bool))


def nth(data: StackedBatches, i: int | Int32[Array, ""]) -> Batch:
    """The batch of a call's step `i`."""
    labels = data.labels[i]
    return Batch(data.images[i], labels, jnp.ones(labels.shape, bool))
