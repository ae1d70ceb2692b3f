"""Losses of a batch: cross-entropy of a class or of labels, focal, distillation, consistency."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

# Lower bound of 1 - p in the focal loss. Below it, the gradient of the power may not be finite.
_LEAST_MISS = 1e-7
# Lower bound of the mean probability in the Jensen-Shannon divergence.
_LEAST_MEAN = 1e-7


@jax.named_scope("loss")
def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    class_weights: Float[Array, " classes"],
    mask: Bool[Array, " batch"] | Float[Array, " batch"],
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
      mask: False for examples that are padding; or the weight of each example, 0 for padding.
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
    return weighted_sum(losses, targets, class_weights, mask), jnp.sum(mask.astype(jnp.float32))


def weighted_sum(
    losses: Float[Array, " batch"],
    targets: Float[Array, "batch classes"],
    class_weights: Float[Array, " classes"],
    mask: Bool[Array, " batch"] | Float[Array, " batch"],
) -> Float[Array, ""]:
    """The sum of the examples' losses, each weighted by the weights of its target's classes."""
    # A sum of products, because a matrix product may round a weight to bfloat16.
    weights = jnp.sum(targets * class_weights[None], axis=-1) * mask.astype(jnp.float32)
    return jnp.sum(losses * weights)


@jax.named_scope("loss")
def binary_cross_entropy(
    logits: Float[Array, "batch labels"],
    targets: Float[Array, "batch labels"],
    positive_weights: Float[Array, " labels"],
    mask: Bool[Array, " batch"] | Float[Array, " batch"],
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Float[Array, ""]:
    """Sigmoid cross-entropy of images with several labels: mean over labels, sum over examples.

    A label with target t and probability p has the loss `-w t log(p) - (1 - t) log(1 - p)`, as
    PyTorch's `BCEWithLogitsLoss` has with `pos_weight` = w. With focal_gamma g it is the focal loss
    `-w t (1 - p)^g log(p) - (1 - t) p^g log(1 - p)` (Lin et al. 2017, arXiv:1708.02002), where the
    weights take the place of alpha.

    Args:
      logits: Log-odds of each label.
      targets: Probability of each label in 0..1: 0 or 1, or in between for mixed images.
      positive_weights: Factor of each label's first term.
      mask: False for examples that are padding; or the weight of each example, 0 for padding.
      label_smoothing: Fraction of each target's mass that is spread evenly over yes and no.
      focal_gamma: Focusing exponent; 0 for cross-entropy.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / 2
    logits = logits.astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    yes, no = -log_p, -log_not_p
    if focal_gamma:
        yes, no = yes * jnp.exp(focal_gamma * log_not_p), no * jnp.exp(focal_gamma * log_p)
    each = positive_weights[None] * targets * yes + (1 - targets) * no
    return jnp.sum(jnp.mean(each, axis=-1) * mask.astype(jnp.float32))


@jax.named_scope("loss")
def distillation_loss(
    logits: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    temperature: float,
) -> Float[Array, " batch"]:
    """Divergence of a student from its teacher: `T^2 KL(teacher || softmax(logits / T))`.

    Hinton et al., "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531. The
    factor T^2 keeps the size of the gradient, which a temperature T divides by T^2.

    Args:
      logits: The student's unnormalised log-probabilities.
      teacher: The teacher's probabilities at the temperature (`distillation.soften`).
      temperature: The temperature T, above 0.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    return temperature**2 * optax.losses.kl_divergence(log_p, teacher)


@jax.named_scope("loss")
def jensen_shannon(logits: Float[Array, "batch views classes"]) -> Float[Array, " batch"]:
    """Jensen-Shannon divergence of the predictions for several views of each example.

    It is the mean divergence of the views' distributions from their mean: the consistency loss of
    AugMix (Hendrycks et al., 2020, arXiv:1912.02781, equation 2), whose reference implementation
    also limits the mean to at least 1e-7.

    Args:
      logits: Unnormalised log-probabilities.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    mean = jnp.maximum(p.mean(axis=1, keepdims=True), _LEAST_MEAN)
    return jnp.sum(p * (log_p - jnp.log(mean)), axis=-1).mean(axis=1)


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
