"""A network's input in a training step: images that are augmented, mixed and normalised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key, Num

from bloodjax.augment import geometry, mix, pipeline
from bloodjax.augment.policy import Policy
from bloodjax.data.batches import Batch
from bloodjax.models.layers import example_keys

# Streams of random numbers that the key of a step is folded into.
_AUGMENT, DROPOUT, _MIX = 0, 1, 2


def prepare_batch(
    policy: Policy,
    key: Key[Array, ""],
    batch: Batch,
    *,
    classes: int,
    axis_name: str | None = None,
) -> Batch:
    """Augments and mixes a batch and fills in its targets.

    Args:
      policy: Augmentation policy.
      key: Key of the step.
      batch: Images in 0..255; of several devices, this device's share.
      classes: Number of classes.
      axis_name: Name of the axis of devices, or None for one.

    Returns:
      The batch with images in 0..255, float32 or uint8, and targets.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    images = pipeline.augment(policy, keys, batch.image)
    targets = _one_hot(batch.label, classes)
    if policy.mix:
        keys = _example_keys(key, _MIX, batch, axis_name)
        images, targets = mix.mix(policy.mix, keys, images, targets)
    return batch.replace(image=images, targets=targets)


def select_cached_view(
    policy: Policy, key: Key[Array, ""], batch: Batch, *, classes: int, axis_name: str | None = None
) -> Batch:
    """`prepare_batch` for cached features: selects the view that `prepare_batch` would draw.

    Args:
      policy: Augmentation policy, of views only.
      key: Key of the step.
      batch: Features [batch, views, features] of each view; of several devices, this device's
        share.
      classes: Number of classes.
      axis_name: Name of the axis of devices, or None for one.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    index = geometry.random_index(keys, policy.views)
    drawn = jnp.take_along_axis(batch.image, index[:, None, None], axis=1)[:, 0]
    return batch.replace(image=drawn, targets=_one_hot(batch.label, classes))


def _example_keys(key, stream: int, batch: Batch, axis_name: str | None):
    return example_keys(jax.random.fold_in(key, stream), len(batch.label), axis_name)


def _one_hot(labels: Int32[Array, " batch"], classes: int) -> Float[Array, "batch classes"]:
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)


@jax.named_scope("normalise")
def normalise(
    images: Num[Array, "*batch size size 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "*batch size size 3"]:
    """The network's input: `(images / 255 - mean) / std` per channel, for images in 0..255."""
    shape = (1,) * (images.ndim - 1) + (3,)
    scale = jnp.asarray(255.0 * np.asarray(std), jnp.float32).reshape(shape)
    shift = jnp.asarray(np.asarray(mean) / np.asarray(std), jnp.float32).reshape(shape)
    return images.astype(jnp.float32) / scale - shift
