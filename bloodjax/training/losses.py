"""Losses of a batch: cross-entropy and focal loss on soft targets, with class weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

# Lower bound of 1 - p in the focal loss. Below it, the gradient of the power may not be finite.
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
    """Softmax cross-entropy with class weights.

    The mean is `sum / count`: as in Keras's `class_weight`, weights scale the losses and not the
    count. An example with a mixed target has the mean of its classes' weights, whereas Keras uses
    the weight of the largest target. Both sums are returned, because the mean over devices is not
    the mean of their means.

    Args:
      logits: Unnormalised log-probabilities.
      targets: Distribution of each example over the classes: one-hot, or a mixture.
      class_weights: Per-class weight.
      mask: False for examples that are padding.
      label_smoothing: Fraction of each target's mass that is spread over all classes, in [0, 1)
        (Szegedy et al., 2016). Examples are weighted by their targets before smoothing.
      focal_gamma: Exponent of `focal_loss`; 0 for cross-entropy.

    Returns:
      The sum of the weighted losses, and the number of examples in the mask.
    """
    smooth = optax.smooth_labels(targets, label_smoothing)
    logits = logits.astype(jnp.float32)
    if focal_gamma:
        losses = focal_loss(logits, smooth, focal_gamma)
    else:
        losses = optax.softmax_cross_entropy(logits, smooth)
    # A sum of products, because a matrix product may round a weight to bfloat16.
    weights = jnp.sum(targets * class_weights[None], axis=-1) * mask.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(mask.astype(jnp.float32))


def focal_loss(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"], gamma: float
) -> Float[Array, " batch"]:
    """Focal loss: `sum_c t_c (1 - p_c)^gamma (-log p_c)`, which weighs easy examples less.

    The softmax form of Lin et al., "Focal loss for dense object detection", 2017,
    arXiv:1708.02002. Class weights take the place of their alpha. With `gamma` = 0 it is the
    cross-entropy.

    Args:
      logits: Unnormalised log-probabilities.
      targets: Distribution of each example over the classes.
      gamma: Focusing exponent, at least 0; 2 in the paper.
    """
    log_p = jax.nn.log_softmax(logits)
    miss = jnp.maximum(-jnp.expm1(log_p), _LEAST_MISS)  # 1 - p, exact where p is close to 1
    return -jnp.sum(targets * miss**gamma * log_p, axis=-1)


def adjust_logits(
    logits: Float[Array, "batch classes"], shift: tuple[float, ...]
) -> Float[Array, "batch classes"]:
    """Adds a per-class shift to the logits in the loss, so that frequent classes need less.

    Menon et al., "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314, in the form
    that acts in training: predictions use the unshifted logits.

    Args:
      logits: Unnormalised log-probabilities.
      shift: Per-class shift, from `class_balance.logit_shift`; () for none.
    """
    if not shift:
        return logits
    return logits.astype(jnp.float32) + jnp.asarray(shift, jnp.float32)[None]
