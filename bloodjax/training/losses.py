"""Losses: one number an example, weighted and averaged by the caller's mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

# The least that focal loss takes for 1 - p: below it, a power's gradient may not be finite.
_LEAST_MISS = 1e-7


@jax.named_scope("loss")
def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    class_weights: Float[Array, " classes"],
    mask: Bool[Array, " batch"],
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Softmax cross-entropy, each example weighted by its class: its sum and the example count.

    The mean is `sum / count`: weights scale the examples' losses and not the count, as Keras's
    `class_weight` has it. An example of several classes has the mean of their weights by its
    targets, where Keras would take that of the largest target alone. Both sums are returned because
    a mean of devices' means is no mean.

    Args:
      logits: unnormalised log-probabilities.
      targets: each example's distribution over the classes: one-hot, or a mixture.
      class_weights: weight of each class.
      mask: False where the example is padding.
      label_smoothing: part of each target's mass that is spread over all classes, in [0, 1)
        (Szegedy et al., 2016). The example's weight is that of the targets before.
      focal_gamma: of `focal_loss`, in place of cross-entropy where it is not 0.
    """
    smooth = optax.smooth_labels(targets, label_smoothing)
    logits = logits.astype(jnp.float32)
    if focal_gamma:
        losses = focal_loss(logits, smooth, focal_gamma)
    else:
        losses = optax.softmax_cross_entropy(logits, smooth)
    # A sum of products, for a matrix product may round a weight to bfloat16.
    weights = jnp.sum(targets * class_weights[None], axis=-1) * mask.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(mask.astype(jnp.float32))


def focal_loss(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"], gamma: float
) -> Float[Array, " batch"]:
    """Focal loss: `sum_c t_c (1 - p_c)^gamma (-log p_c)`, so that what is right weighs little.

    Lin et al., "Focal loss for dense object detection", 2017, arXiv:1708.02002, its softmax form,
    without their weight alpha (the class weights are). It is cross-entropy where `gamma` is 0.

    Args:
      logits: unnormalised log-probabilities.
      targets: each example's distribution over the classes.
      gamma: at least 0; the paper's choice is 2.
    """
    log_p = jax.nn.log_softmax(logits)
    miss = jnp.maximum(-jnp.expm1(log_p), _LEAST_MISS)  # 1 - p, exact where p is close to 1
    return -jnp.sum(targets * miss**gamma * log_p, axis=-1)


def adjust_logits(
    logits: Float[Array, "batch classes"], shift: tuple[float, ...]
) -> Float[Array, "batch classes"]:
    """Logits as the loss takes them: shifted towards the frequent classes, which then need less.

    Menon et al., "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314, in the form
    that is part of training: predictions take the logits as they are.

    Args:
      logits: unnormalised log-probabilities.
      shift: of each class; see `class_balance.logit_shift`. Nothing is changed where it is empty.
    """
    if not shift:
        return logits
    return logits.astype(jnp.float32) + jnp.asarray(shift, jnp.float32)[None]
