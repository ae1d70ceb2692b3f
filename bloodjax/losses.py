"""Losses: one number an example, weighted and averaged by the caller's mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


@jax.named_scope("loss")
def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    class_weights: Float[Array, " classes"],
    mask: Bool[Array, " batch"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Softmax cross-entropy, each example weighted by its class: its sum and the example count.

    The mean is `sum / count`: weights scale the examples' losses and not the count, as Keras's
    `class_weight` has it. Both are returned because a mean of devices' means is no mean.

    Args:
      logits: unnormalised log-probabilities.
      labels: class index of each example.
      class_weights: weight of each class.
      mask: False where the example is padding.
      label_smoothing: part of each label's mass that is spread over all classes, in [0, 1)
        (Szegedy et al., 2016).
    """
    targets = jnp.asarray(labels[:, None] == jnp.arange(logits.shape[-1])[None], jnp.float32)
    smooth = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth)
    weights = class_weights[labels] * mask.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(mask.astype(jnp.float32))
