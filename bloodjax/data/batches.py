"""Batches, gathered from a dataset on the device or streamed from the host, and their order.

The order is a pure function of (seed, epoch), so a resumed run needs only its step number.
"""

from __future__ import annotations

import math
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Key, Num, PyTree, UInt8

from bloodjax.cli.console import counted
from bloodjax.errors import UserError

# Number of rows that hold an image on the device, and the unit of their width. A TPU keeps arrays
# in tiles of 8 rows and 128 columns. An image that fills whole tiles is contiguous in its memory.
_ROWS, _COLUMNS = 8, 128


@flax.struct.dataclass
class DeviceDataset:
    """All images and labels of a dataset, on the device.

    The values of an image are in rows and not in its own shape, because the batch's gather would
    else copy all images in each step on a TPU: the compiler lays out [n, size, size, 3] with n as
    the minor dimension, in which an image is not contiguous.

    Attributes:
      rows: uint8 [n, 8, width], the values of each image in order, followed by zeros up to a width
        that is a multiple of 128; or the features of every view (`predict_step.features_step`).
      labels: int32 [n], or [n, classes] if an image can have several labels.
      shape: Shape of an image, (size, size, 3), or of its features, (views, features).
      teacher: float32 [n, classes], a teacher's class probabilities, or None without a teacher.
      weights: float32 [n], factors of the images' losses, or None if all are 1.
    """

    # The type is PyTree because a field may also be a stack of one copy per device.
    rows: PyTree
    labels: PyTree
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    teacher: PyTree = None
    weights: PyTree = None

    @classmethod
    def of(
        cls,
        images: UInt8[Array | np.ndarray, "n size size 3"] | Float[Array | np.ndarray, "n ..."],
        labels: Int32[Array | np.ndarray, "n ..."],
        teacher: Float[Array | np.ndarray, "n classes"] | None = None,
        weights: Float[Array | np.ndarray, " n"] | None = None,
    ) -> DeviceDataset:
        """The dataset of images or features; NumPy arrays stay on the host."""
        n, *shape = images.shape
        size = math.prod(shape)
        padding = -size % (_ROWS * _COLUMNS)
        flat = images.reshape(n, size)
        if padding:
            xp = np if isinstance(images, np.ndarray) else jnp
            flat = xp.pad(flat, ((0, 0), (0, padding)))
        return cls(flat.reshape(n, _ROWS, -1), labels, tuple(shape), teacher, weights)

    def take(self, index: Int32[Array, " batch"]) -> Num[Array, "batch ..."]:
        """The images or features of the given indices, which are in 0..n - 1."""
        rows = self.rows.at[index].get(mode="promise_in_bounds")
        flat = rows.reshape(len(index), -1)[:, : math.prod(self.shape)]
        return flat.reshape(len(index), *self.shape)


@flax.struct.dataclass
class StackedBatches:
    """The batches of the training steps that one dispatch to the device runs.

    Attributes:
      images: uint8 [steps, batch, size, size, 3].
      labels: int32 [steps, batch], or [steps, batch, classes].
      teacher: float32 [steps, batch, classes], a teacher's class probabilities, or None without a
        teacher.
      weights: float32 [steps, batch], factors of the images' losses, or None if all are 1.
    """

    # The type is PyTree because a field may also have a leading axis of devices.
    images: PyTree
    labels: PyTree
    teacher: PyTree = None
    weights: PyTree = None


@flax.struct.dataclass
class Batch:
    """The input of a training or prediction step.

    Attributes:
      image: Images, or features in their place.
      label: Class index of each example, or 1 for each label that it has and 0 for each other.
      mask: False for examples that are padding.
      targets: Share of each class in each example; the training step fills it in.
      teacher: A teacher's class probabilities, or None without a teacher.
      weight: Factor of each example's loss, or None if all are 1.
    """

    image: UInt8[Array, "batch size size 3"] | Float[Array, "batch ..."]
    label: Int32[Array, "batch ..."]
    mask: Bool[Array, " batch"]
    targets: Float[Array, "batch classes"] | None = None
    teacher: Float[Array, "batch classes"] | None = None
    weight: Float[Array, " batch"] | None = None


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
    by_class, first, counts = _grouped(seed, epoch, labels, num_classes)
    class_key, order_key = _sampling_keys(seed, epoch)
    # Cycle through the classes, and through the images of each class; then shuffle.
    turn = jnp.arange(size, dtype=jnp.int32)
    classes = jax.random.permutation(class_key, jnp.arange(num_classes, dtype=jnp.int32))
    label = classes[turn % num_classes]
    images = by_class[first[label] + turn // num_classes % counts[label]]
    return jax.random.permutation(order_key, images)


def sampled_order(
    seed: int,
    epoch: int,
    labels: Int32[np.ndarray, " n"],
    num_classes: int,
    size: int,
    exponent: float,
) -> Int32[Array, " size"]:
    """Samples an order of `size` images in which a class's share is proportional to its size**q.

    With q = 0 all classes are equally frequent, see `balanced_order`; with q = 1 the shares are
    those of the dataset. In between, rare classes are repeated less than with q = 0 (q = 0.5 is
    square-root sampling; Kang et al., "Decoupling representation and classifier for long-tailed
    recognition", 2020, arXiv:1910.09217). The number of images of a class is its expectation,
    rounded up in some epochs and down in others, so that the mean over epochs is the expectation.
    The counts of two images of a class differ by at most one, and the ones that occur once more, or
    not at all, differ from epoch to epoch.

    Args:
      seed: Random seed of the run.
      epoch: Epochs since the start of the run.
      labels: Class index of each image; every class has an image.
      num_classes: Number of classes.
      size: Length of the order.
      exponent: The exponent q, in 0..1.
    """
    if exponent == 0:
        return balanced_order(seed, epoch, labels, num_classes, size)
    counts = np.bincount(labels, minlength=num_classes)
    offset = float(jax.random.uniform(_sampling_keys(seed, epoch)[0]))
    return _order_of(seed, epoch, labels, class_quotas(counts, size, exponent, offset), size)


def class_quotas(
    counts: Int[np.ndarray, " classes"], size: int, exponent: float, offset: float
) -> Int32[np.ndarray, " classes"]:
    """Number of images of each class in an order of `size` images, by systematic sampling.

    Args:
      counts: Number of images of each class in the dataset.
      size: Length of the order.
      exponent: A class's share of the order is proportional to count**exponent.
      offset: In [0, 1). Over uniform offsets, the mean of each number is its expectation; each is
        the expectation rounded up or down.
    """
    shares = counts.astype(np.float64) ** exponent
    ends = np.floor(size * np.cumsum(shares) / shares.sum() + offset)
    ends[-1] = size
    return np.diff(ends, prepend=0).astype(np.int32)


def _sampling_keys(
    seed: int | Int32[Array, ""], epoch: int | Int32[Array, ""]
) -> Key[Array, " keys"]:
    """Keys of the classes and of the order; `epoch_order` uses the epoch's key itself."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    return jax.random.split(jax.random.fold_in(key, 1))


@partial(jax.jit, static_argnames="size")
def _order_of(
    seed: int | Int32[Array, ""],
    epoch: int | Int32[Array, ""],
    labels: Int32[Array, " n"],
    quotas: Int32[Array, " classes"],
    size: int,
) -> Int32[Array, " size"]:
    """An order with `quotas` images of each class, `size` in all."""
    by_class, first, counts = _grouped(seed, epoch, labels, len(quotas))
    turn = jnp.arange(size, dtype=jnp.int32)
    ends = jnp.cumsum(quotas)
    label = jnp.searchsorted(ends, turn, side="right").astype(jnp.int32)
    nth_of_class = turn - (ends - quotas)[label]
    images = by_class[first[label] + nth_of_class % counts[label]]
    return jax.random.permutation(_sampling_keys(seed, epoch)[1], images)


def _grouped(
    seed: int | Int32[Array, ""],
    epoch: int | Int32[Array, ""],
    labels: Int32[Array, " n"],
    num_classes: int,
) -> tuple[Int32[Array, " n"], Int32[Array, " classes"], Int32[Array, " classes"]]:
    """The images by class, in random order; where each class starts; how many images it has."""
    shuffled = epoch_order(seed, epoch, len(labels))
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)]
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    return by_class, jnp.cumsum(counts) - counts, counts


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of full batches in an epoch.

    The images at the end of the order that do not fill a batch are skipped; the order, and so
    these images, differ from epoch to epoch.

    Raises:
      UserError: There are fewer images than `batch_size`.
    """
    if n < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training split has "
            f"{counted(n, 'image')}: expected at most as many"
        )
    return n // batch_size


@jax.named_scope("input")
def gather(
    data: DeviceDataset, order: Int32[Array, " n"], start: Int32[Array, ""], size: int
) -> Batch:
    """The batch of the images `order[start : start + size]`."""
    index = lax.dynamic_slice(order, (start,), (size,))
    labels = data.labels.at[index].get(mode="promise_in_bounds")
    teacher, weight = data.teacher, data.weights
    if teacher is not None:
        teacher = teacher.at[index].get(mode="promise_in_bounds")
    if weight is not None:
        weight = weight.at[index].get(mode="promise_in_bounds")
    return Batch(data.take(index), labels, jnp.ones(size, bool), teacher=teacher, weight=weight)


def nth(data: StackedBatches, i: int | Int32[Array, ""]) -> Batch:
    """The batch of step `i` of the dispatch."""
    labels = data.labels[i]
    teacher = None if data.teacher is None else data.teacher[i]
    weight = None if data.weights is None else data.weights[i]
    return Batch(
        data.images[i], labels, jnp.ones(labels.shape[:1], bool), teacher=teacher, weight=weight
    )
