"""Class weights, logit shifts and sampling for classes of unequal size.

Imbalance is corrected only once: with `config.data.sampling` or `config.loss.logit_adjustment`, all
class weights are 1, and the logits are shifted by the class frequencies after sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from bloodjax import config as config_lib
from bloodjax.cli.console import counted
from bloodjax.config import Config
from bloodjax.data.batches import steps_per_epoch


def balanced_class_weights(
    labels: Int[np.ndarray, " n"], num_classes: int
) -> Float32[np.ndarray, " classes"]:
    """scikit-learn's "balanced" weights, n / (classes * count).

    Raises:
      ValueError: A label is out of range, or a class has no images.
    """
    counts = _counts(labels, num_classes).astype(np.float64)
    return (len(labels) / (num_classes * counts)).astype(np.float32)


def effective_class_weights(
    labels: Int[np.ndarray, " n"], num_classes: int, beta: float
) -> Float32[np.ndarray, " classes"]:
    """Weights by the effective number of samples, `(1 - beta) / (1 - beta^count)`, of mean 1.

    Cui et al., "Class-balanced loss based on effective number of samples", 2019, arXiv:1901.05555.

    Args:
      labels: Class index of each training image.
      num_classes: Number of classes.
      beta: In [0, 1). With 0 all weights are equal; close to 1 they are proportional to 1 / count.

    Raises:
      ValueError: A label is out of range, or a class has no images.
    """
    weights = (1 - beta) / (1 - beta ** _counts(labels, num_classes))
    return (weights / weights.mean()).astype(np.float32)


def positive_weights(labels: Int[np.ndarray, "n classes"]) -> Float32[np.ndarray, " classes"]:
    """Negatives divided by positives of each label: together the positives weigh as much.

    A label that all images have weighs 1: with 0 it would have no loss, and never be learnt.

    Args:
      labels: 1 for each label that an image has and 0 for each other.

    Raises:
      ValueError: A label has no images.
    """
    positives = labels.sum(axis=0)
    if not positives.all():
        raise ValueError(f"counts {positives.tolist()}: expected images with each label")
    negatives = len(labels) - positives
    return np.where(negatives > 0, negatives / positives, 1.0).astype(np.float32)


def class_weights(
    config: Config, labels: Int[np.ndarray, "n ..."], num_classes: int
) -> Float32[np.ndarray, " classes"]:
    """Per-class weights in the loss, as `config.loss.class_weights` says.

    If an image can have several labels, they are `positive_weights`.

    Raises:
      ValueError: A label is out of range, or a class has no images.
    """
    loss = config.loss
    sampled = config_lib.sampling_exponent(config) != 1
    if loss.class_weights == "none" or sampled or loss.logit_adjustment:
        return np.ones(num_classes, np.float32)
    if labels.ndim == 2:
        return positive_weights(labels)
    if loss.class_weights == "effective":
        return effective_class_weights(labels, num_classes, loss.effective_beta)
    return balanced_class_weights(labels, num_classes)


def logit_shift(
    config: Config, labels: Int[np.ndarray, "n ..."], num_classes: int
) -> tuple[float, ...]:
    """Per-class `tau * log(frequency)` for `losses.adjust_logits`; () if tau is 0.

    Tau is `config.loss.logit_adjustment`. The frequency is that of the class in an epoch, which
    `config.data.sampling` changes.

    Raises:
      ValueError: A label is out of range, or a class has no images.
    """
    tau = config.loss.logit_adjustment
    if tau == 0:
        return ()
    return tuple((tau * np.log(_shares(config, _counts(labels, num_classes)))).tolist())


def implied_shares(
    config: Config, labels: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, " classes"]:
    """The class shares for which the loss makes the network's probabilities right.

    A class that the loss weights more is expected more often (Elkan, 2001), and with
    `config.loss.logit_adjustment` of 1 all are expected alike (Menon et al., 2021,
    arXiv:2007.07314).

    Returns:
      Shares, sum 1.

    Raises:
      ValueError: A label is out of range, or a class has no images but a weight.
    """
    counts = np.bincount(labels, minlength=num_classes)
    shown = np.zeros(num_classes)
    shown[counts > 0] = _shares(config, counts[counts > 0])
    expected = shown ** (1 - config.loss.logit_adjustment) * (counts > 0)
    expected = expected * class_weights(config, labels, num_classes)
    return expected / expected.sum()


def sampling_statement(
    config: Config, labels: Int[np.ndarray, "n ..."], classes: Sequence[str]
) -> str:
    """One line on how often an epoch shows an image of the rarest and the most frequent class.

    Args:
      config: Config of the run.
      labels: Class index of each training image.
      classes: Names of the classes.

    Returns:
      The line; "" for natural sampling, which shows each image once.

    Raises:
      ValueError: A label is out of range, or a class has no images.
    """
    if config_lib.sampling_exponent(config) == 1:
        return ""
    counts = _counts(labels, len(classes))
    size = steps_per_epoch(len(labels), config.batch_size) * config.batch_size
    times = size * _shares(config, counts) / counts
    shown = [
        f"an image of {classes[i]} ({counted(counts[i], 'image')}) {times[i]:.1f} times"
        for i in (int(counts.argmin()), int(counts.argmax()))
    ]
    anew = "" if config.augment == "none" else ", each time augmented anew"
    return f"sampling {config.data.sampling}: an epoch shows {' and '.join(shown)}{anew}"


def _shares(config: Config, counts: Int[np.ndarray, " classes"]) -> Float[np.ndarray, " classes"]:
    """Share of each class among the images that an epoch shows."""
    shares = counts.astype(np.float64) ** config_lib.sampling_exponent(config)
    return shares / shares.sum()


def _counts(labels: Int[np.ndarray, " n"], num_classes: int) -> Int[np.ndarray, " classes"]:
    counts = np.bincount(labels, minlength=num_classes)
    if len(counts) != num_classes or not counts.all():
        raise ValueError(f"counts {counts.tolist()}: expected images in each of {num_classes}")
    return counts
