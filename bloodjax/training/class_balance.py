"""What the loss does about classes of unequal size: it weighs them, or shifts their logits.

Nothing is corrected twice: where `config.data.oversample` draws all classes equally often, or
`config.loss.logit_adjustment` shifts their logits, weights are 1 whatever the config says.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int

from bloodjax.config import Config


def balanced_class_weights(
    labels: Int[np.ndarray, " n"], num_classes: int
) -> Float32[np.ndarray, " classes"]:
    """scikit-learn's "balanced" weights, n / (classes * count): rare classes weigh more.

    Raises:
      ValueError: a label out of range, or a class without images.
    """
    counts = _counts(labels, num_classes).astype(np.float64)
    return (len(labels) / (num_classes * counts)).astype(np.float32)


def effective_class_weights(
    labels: Int[np.ndarray, " n"], num_classes: int, beta: float
) -> Float32[np.ndarray, " classes"]:
    """Weights by the effective number of samples, `(1 - beta) / (1 - beta^count)`, of mean 1.

    Cui et al., "Class-balanced loss based on effective number of samples", 2019, arXiv:1901.05555.

    Args:
      labels: of the training part.
      num_classes: number of classes.
      beta: in [0, 1): 0 weighs all classes alike, and close to 1 it is by 1 / count.

    Raises:
      ValueError: a label out of range, or a class without images.
    """
    weights = (1 - beta) / (1 - beta ** _counts(labels, num_classes))
    return (weights / weights.mean()).astype(np.float32)


def class_weights(
    config: Config, labels: Int[np.ndarray, " n"], num_classes: int
) -> Float32[np.ndarray, " classes"]:
    """The weight of each class in the loss, as `config.loss.class_weights` names it.

    Raises:
      ValueError: a label out of range, or a class without images.
    """
    loss = config.loss
    if loss.class_weights == "none" or config.data.oversample or loss.logit_adjustment:
        return np.ones(num_classes, np.float32)
    if loss.class_weights == "effective":
        return effective_class_weights(labels, num_classes, loss.effective_beta)
    return balanced_class_weights(labels, num_classes)


def logit_shift(
    config: Config, labels: Int[np.ndarray, " n"], num_classes: int
) -> tuple[float, ...]:
    """`tau * log(frequency)` of each class, which `losses.adjust_logits` takes; () where tau is 0.

    Raises:
      ValueError: a label out of range, or a class without images.
    """
    tau = config.loss.logit_adjustment
    if tau == 0:
        return ()
    return tuple((tau * np.log(_counts(labels, num_classes) / len(labels))).tolist())


def _counts(labels: Int[np.ndarray, " n"], num_classes: int) -> Int[np.ndarray, " classes"]:
    counts = np.bincount(labels, minlength=num_classes)
    if len(counts) != num_classes or not counts.all():
        raise ValueError(f"counts {counts.tolist()}: expected images in each of {num_classes}")
    return counts
