"""Losses: one number an example, weighted and averaged by the caller's mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def one_hot(labels: Int[Array, " batch"], classes: int) -> Float[Array, "batch classes"]:
    """1 at each example's class and 0 elsewhere."""
    return jnp.asarray(labels[:, None] == jnp.arange(classes)[None], jnp.float32)


@jax.named_scope("loss")
def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    class_weights: Float[Array, " classes"],
    mask: Bool[Array, " batch"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Softmax cross-entropy, each example weighted by its class: its sum and the example count.

    The mean is `sum / count`: weights scale the examples' losses and not the count, as Keras's
    `class_weight` has it. Both are returned because a mean of devices' means is no mean.

    Args:
      logits: unnormalised log-probabilities.
      targets: what part of each example is of each class.
      class_weights: weight of each class.
      mask: False where the example is padding.
      label_smoothing: part of each label's mass that is spread over all classes, in [0, 1)
        (Szegedy et al., 2016).
    """
    smooth = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth)
    weights = (targets * class_weights[None]).sum(-1) * mask.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(mask.astype(jnp.float32))
