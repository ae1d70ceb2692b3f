"""Batches, gathered from a dataset on the device or streamed from the host, and their order.

The order is a pure function of (seed, epoch), so a resumed run needs only its step number.
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
    """All images and labels of a dataset, on the device.

    Attributes:
      images: uint8 [n, size, size, 3], or features of every view (`predict_step.features_step`).
      labels: int32 [n].
    """

    # The type is PyTree because a field may also be a stack of one copy per device.
    images: PyTree
    labels: PyTree


@flax.struct.dataclass
class StackedBatches:
    """The batches of the training steps that one dispatch to the device runs.

    Attributes:
      images: uint8 [steps, batch, size, size, 3].
      labels: int32 [steps, batch].
    """

    # The type is PyTree because a field may also have a leading axis of devices.
    images: PyTree
    labels: PyTree


@flax.struct.dataclass
class Batch:
    """The input of a training or prediction step.

    Attributes:
      image: Images, or features in their place.
      label: Class index of each example.
      mask: False for examples that are padding.
      targets: Share of each class in each example; the training step fills it in.
    """

    image: UInt8[Array, "batch size size 3"] | Float[Array, "batch ..."]
    label: Int32[Array, " batch"]
    mask: Bool[Array, " batch"]
    targets: Float[Array, "batch classes"] | None = None


@partial(jax.jit, static_argnames="n")
def epoch_order(
    seed: int | Int32[Array, ""], epoch: int | Int32[Array, ""], n: int
) -> Int32[Array, " n"]:
    """A random permutation of `n` images: the order in which an epoch visits them."""
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
    """Samples an order of `size` images in which all classes are equally frequent.

    The counts of two classes differ by at most one, and so do the counts of two images of a class.
    The images that occur once more, or not at all, differ from epoch to epoch.

    Args:
      seed: Random seed of the run.
      epoch: Epochs since the start of the run.
      labels: Class index of each image; every class has an image.
      num_classes: Number of classes.
      size: Length of the order.
    """
    shuffled = epoch_order(seed, epoch, len(labels))
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)]
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    first = jnp.cumsum(counts) - counts
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    # `epoch_order` has used the key itself.
    class_key, order_key = jax.random.split(jax.random.fold_in(key, 1))
    # Cycle through the classes, and through the images of each class; then shuffle.
    turn = jnp.arange(size, dtype=jnp.int32)
    classes = jax.random.permutation(class_key, jnp.arange(num_classes, dtype=jnp.int32))
    label = classes[turn % num_classes]
    images = by_class[first[label] + turn // num_classes % counts[label]]
    return jax.random.permutation(order_key, images)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of full batches in an epoch.

    The images at the end of the order that do not fill a batch are skipped; the order, and so
    these images, differ from epoch to epoch.

    Raises:
      UserError: There are fewer images than `batch_size`.
    """
    if n < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training split has {n} images: "
            "expected at most as many"
        )
    return n // batch_size


@jax.named_scope("input")
def gather(
    data: DeviceDataset, order: Int32[Array, " n"], start: Int32[Array, ""], size: int
) -> Batch:
    """The batch of the images `order[start : start + size]`."""
    index = lax.dynamic_slice(order, (start,), (size,))
    return Batch(data.images[index], data.labels[index], jnp.ones(size, bool))


def nth(data: StackedBatches, i: int | Int32[Array, ""]) -> Batch:
    """The batch of step `i` of the dispatch."""
    labels = data.labels[i]
    return Batch(data.images[i], labels, jnp.ones(labels.shape, bool))
