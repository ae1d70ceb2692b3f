"""A network's input in a training step: images that are augmented, mixed and normalised."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, UInt8

from bloodjax.augment import geometry, mix, pipeline
from bloodjax.augment.policy import Policy
from bloodjax.data.batches import Batch
from bloodjax.models.layers import example_keys
from bloodjax.training.objectives import MULTI_CLASS, Objective

# Streams of random numbers that the key of a step is folded into.
_AUGMENT, DROPOUT, _MIX, _SECOND_AUGMENT = 0, 1, 2, 3
# Views of each image that the consistency loss compares: clean, and augmented twice.
VIEWS = 3


def prepare_batch(
    policy: Policy,
    key: Key[Array, ""],
    batch: Batch,
    *,
    classes: int,
    axis_name: str | None = None,
    size: int | None = None,
    several_views: bool = False,
    objective: Objective = MULTI_CLASS,
) -> Batch:
    """Augments and mixes a batch and fills in its targets.

    The probabilities of a teacher and the weights of the examples, if the batch has them, are mixed
    like the targets.

    Args:
      policy: Augmentation policy.
      key: Key of the step.
      batch: Images in 0..255; of several devices, this device's share.
      classes: Number of classes.
      axis_name: Name of the axis of devices, or None for one.
      size: Side in pixels that images are resized to first; None for their own.
      several_views: Whether to return `VIEWS` views of each image: first the image with the
        policy's flips and turns only, then two with its other operations as well, at independent
        random choices. All are mixed in the same way.
      objective: How labels become targets.

    Returns:
      The batch with images in 0..255, float32 or uint8, and targets. With several views the images
      are [batch, views, size, size, 3].
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    images = batch.image if size is None else resize(batch.image, size)
    if several_views:
        others = _example_keys(key, _SECOND_AUGMENT, batch, axis_name)
        views = _clean_and_augmented(policy, keys, others, images)
    else:
        views = (pipeline.augment(policy, keys, images),)
    targets, teacher = objective.targets(batch.label, classes), batch.teacher
    weight = batch.weight
    if policy.mix:
        keys = _example_keys(key, _MIX, batch, axis_name)
        shared = targets if teacher is None else jnp.concatenate([targets, teacher], axis=-1)
        if weight is not None:  # an image of weight 0 has no part in the mixed label
            shared = jnp.concatenate([shared * weight[:, None], weight[:, None]], axis=-1)
        mixed = [mix.mix(policy.mix, keys, images, shared) for images in views]
        views, shared = [images for images, _ in mixed], mixed[0][1]
        if weight is not None:
            shared, weight = shared[:, :-1], shared[:, -1]
            shared = shared / jnp.where(weight > 0, weight, 1)[:, None]
        targets, teacher = shared[:, :classes], None if teacher is None else shared[:, classes:]
    images = jnp.stack(views, axis=1) if several_views else views[0]
    return batch.replace(image=images, targets=targets, teacher=teacher, weight=weight)


def _clean_and_augmented(policy: Policy, keys, other_keys, images) -> tuple[Array, ...]:
    """Each image with the policy's flips and turns only, and two augmented versions of it."""
    clean = geometry.random_view(keys, images, policy.views)
    rest = dataclasses.replace(policy, views="none")
    augmented = [pipeline.augment(rest, each, clean) for each in (keys, other_keys)]
    return clean.astype(jnp.float32), *(each.astype(jnp.float32) for each in augmented)


@jax.named_scope("input")
def resize(
    images: UInt8[Array, "batch height width 3"], size: int
) -> UInt8[Array, "batch size size 3"]:
    """Images of `size` pixels a side, by bicubic interpolation with antialiasing as in Pillow."""
    shape = (len(images), size, size, images.shape[-1])
    resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic")
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def select_cached_view(
    policy: Policy,
    key: Key[Array, ""],
    batch: Batch,
    *,
    classes: int,
    axis_name: str | None = None,
    objective: Objective = MULTI_CLASS,
) -> Batch:
    """`prepare_batch` for cached features: selects the view that `prepare_batch` would draw.

    Args:
      policy: Augmentation policy, of views only.
      key: Key of the step.
      batch: Features [batch, views, features] of each view; of several devices, this device's
        share.
      classes: Number of classes.
      axis_name: Name of the axis of devices, or None for one.
      objective: How labels become targets.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    index = geometry.random_index(keys, policy.views)
    drawn = jnp.take_along_axis(batch.image, index[:, None, None], axis=1)[:, 0]
    return batch.replace(image=drawn, targets=objective.targets(batch.label, classes))


def _example_keys(key, stream: int, batch: Batch, axis_name: str | None):
    return example_keys(jax.random.fold_in(key, stream), len(batch.label), axis_name)


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
