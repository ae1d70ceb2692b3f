"""What a network's logits are trained to be: one class of an image, or any number of labels.

These are the two kinds of `config.data.task`. Each says how labels become targets, what the loss
is, what counts as correct, and which function makes logits probabilities.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from bloodjax.augment import tta
from bloodjax.training import losses

# False for examples that are padding; or the weight of each example, 0 for padding.
Mask = Bool[Array, " batch"] | Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class MultiClass:
    """Each image has one class; the classes' probabilities sum to 1.

    Attributes:
      output: The softmax.
    """

    output: tta.Output = tta.SOFTMAX

    def targets(
        self, labels: Int32[Array, " batch"], classes: int
    ) -> Float[Array, "batch classes"]:
        """One-hot rows of class indices."""
        return jax.nn.one_hot(labels, classes, dtype=jnp.float32)

    def loss(
        self,
        logits: Float[Array, "batch classes"],
        targets: Float[Array, "batch classes"],
        weights: Float[Array, " classes"],
        mask: Mask,
        label_smoothing: float,
        focal_gamma: float,
    ) -> Float[Array, ""]:
        """The sum of `losses.weighted_cross_entropy`."""
        total, _ = losses.weighted_cross_entropy(
            logits, targets, weights, mask, label_smoothing, focal_gamma
        )
        return total

    def correct(
        self,
        logits: Float[Array, "batch classes"],
        targets: Float[Array, "batch classes"],
        mask: Mask,
    ) -> Float[Array, ""]:
        """Number of examples whose most probable class is that with the largest target."""
        hit = logits.argmax(-1) == targets.argmax(-1)
        return jnp.sum((hit & mask).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Each image has any number of labels, whose probabilities are independent of one another.

    Attributes:
      output: The sigmoid.
    """

    output: tta.Output = tta.SIGMOID

    def targets(
        self, labels: Int32[Array, "batch classes"], classes: int
    ) -> Float[Array, "batch classes"]:
        """1 for each label that an example has and 0 for each other."""
        return labels.astype(jnp.float32)

    def loss(
        self,
        logits: Float[Array, "batch classes"],
        targets: Float[Array, "batch classes"],
        weights: Float[Array, " classes"],
        mask: Mask,
        label_smoothing: float,
        focal_gamma: float,
    ) -> Float[Array, ""]:
        """`losses.binary_cross_entropy`, whose `positive_weights` are the weights."""
        return losses.binary_cross_entropy(
            logits, targets, weights, mask, label_smoothing, focal_gamma
        )

    def correct(
        self,
        logits: Float[Array, "batch classes"],
        targets: Float[Array, "batch classes"],
        mask: Mask,
    ) -> Float[Array, ""]:
        """Sum over the examples of the share of their labels that are right at threshold 0.5."""
        hit = (logits > 0) == (targets > 0.5)
        share = jnp.mean(hit.astype(jnp.float32), axis=-1)
        return jnp.sum(share * mask.astype(jnp.float32))


Objective = MultiClass | MultiLabel
MULTI_CLASS, MULTI_LABEL = MultiClass(), MultiLabel()
