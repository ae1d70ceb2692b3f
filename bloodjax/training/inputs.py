"""A batch as a training step sees it: augmented, mixed, with its targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from bloodjax.augment import geometry, mix, pipeline
from bloodjax.augment.policy import Policy
from bloodjax.data.batches import Batch
from bloodjax.models.layers import example_keys

# Streams of random numbers that one step's key branches into; 1 is `steps`'s.
_AUGMENT, _MIX = 0, 2


def prepare_batch(
    policy: Policy,
    key: Key[Array, ""],
    batch: Batch,
    *,
    classes: int,
    axis_name: str | None = None,
    devices: int = 1,
) -> Batch:
    """The batch with images as the policy draws them, float32 in 0..255 or bytes, and targets.

    Args:
      policy: what to draw from.
      key: the step's.
      batch: images; under pmap this device's share.
      classes: how many there are.
      axis_name: pmap's axis, or None under jit.
      devices: that share the batch, under jit.
    """
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    images = pipeline.augment(policy, keys, batch.image, devices=devices)
    targets = _one_hot(batch.label, classes)
    if policy.mix:
        keys = _example_keys(key, _MIX, batch, axis_name)
        images, targets = mix.mix(policy.mix, keys, images, targets)
    return batch.replace(image=images, targets=targets)


def drawn_view(
    policy: Policy, key: Key[Array, ""], batch: Batch, *, classes: int, axis_name: str | None = None
) -> Batch:
    """The same of the features of all views: those of the view that `prepare_batch` would draw."""
    keys = _example_keys(key, _AUGMENT, batch, axis_name)
    index = geometry.random_index(keys, policy.views)
    drawn = jnp.take_along_axis(batch.image, index[:, None, None], axis=1)[:, 0]
    return batch.replace(image=drawn, targets=_one_hot(batch.label, classes))


def _example_keys(key, stream: int, batch: Batch, axis_name: str | None):
    return example_keys(jax.random.fold_in(key, stream), len(batch.label), axis_name)


def _one_hot(labels: Int32[Array, " batch"], classes: int) -> Float[Array, "batch classes"]:
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)
