"""Calibration of class probabilities: temperature and vector scaling.

Both act on logarithms of probabilities (Guo et al. 2017, On calibration of modern neural networks,
https://arxiv.org/abs/1706.04599). For one prediction of a network this equals scaling its logits,
and it applies just as well to the mean of several views. A temperature keeps the order of the
classes, so it never changes the predicted class.

Without a mistake in validation the most likely temperature is 0, which claims certainty. So the fit
counts the least confident image a second time, as an image of its second most probable class. Of n
right answers with equal confidence, the calibrated confidence is then n / (n + 1). Where the
classifier does make mistakes, one more of the most plausible kind changes little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float, Int

from bloodjax.metrics.classification import SMALLEST_PROBABILITY

METHODS = ("none", "temperature", "vector")
AUTO = "auto"
# Smallest and largest temperature. Trained networks need values from about 0.3 to 4.
TEMPERATURES = (0.05, 20.0)
# Folds of the validation images on which vector scaling is compared with temperature scaling.
FOLDS = 5
# Standard errors by which vector scaling must be better on images that it was not fitted to.
CLEARLY = 2.0
# The smallest normal float32. Smaller probabilities are 0 on most devices.
_TINY = float(np.finfo(np.float32).tiny)

Probabilities = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A map from class probabilities p to softmax(scale * log(p) / temperature + bias).

    Attributes:
      method: "none", "temperature" or "vector".
      temperature: Divides the logarithms; below 1 it makes the classifier more confident.
      bias: Added to each class; empty for zeros.
      scale: Factor of each class; empty for ones.
    """

    method: str = "none"
    temperature: float = 1.0
    bias: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def apply(self, probabilities: Float[np.ndarray, "*n classes"]) -> np.ndarray:
        """Calibrated class probabilities, in the dtype of `probabilities`.

        Args:
          probabilities: Class probabilities; rows sum to 1.
        """
        if self.method == "none":
            return probabilities
        logits = logarithms(probabilities) / self.temperature
        if self.scale:
            logits = logits * np.asarray(self.scale)
        if self.bias:
            logits = logits + np.asarray(self.bias)
        return np.exp(log_softmax(logits)).astype(probabilities.dtype)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "bias": list(self.bias),
            "scale": list(self.scale),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
          ValueError: A value is not allowed.
          KeyError: A field is missing.
        """
        found = cls(
            str(content["method"]),
            float(content["temperature"]),
            tuple(float(value) for value in content["bias"]),
            tuple(float(value) for value in content["scale"]),
        )
        if found.method not in METHODS or not 0 < found.temperature < np.inf:
            raise ValueError(f"method {found.method!r}, temperature {found.temperature}")
        if not np.isfinite([*found.bias, *found.scale]).all():
            raise ValueError("bias or scale is not finite")
        return found


NONE = Calibration()


def fit(
    probabilities: Probabilities, labels: Labels, method: str = AUTO, seed: int = 0
) -> Calibration:
    """Fits a calibration to images that the classifier was not trained on.

    Args:
      probabilities: Class probabilities of at least one image; rows sum to 1.
      labels: True class indices.
      method: "none", "temperature", "vector" or "auto". "auto" is temperature scaling, unless
        vector scaling is better on held-out folds, see `vector_gain`, and each class has an image:
        images of the other classes cannot say how much a class without any should get.
      seed: Seed of the folds.

    Raises:
      ValueError: There are no images, or the method is unknown.
    """
    if method == AUTO and 0 < len(np.unique(labels)) < probabilities.shape[1]:
        method = "temperature"
    method = choose(method, len(labels), lambda: vector_gain(probabilities, labels, seed))
    if method == "none":
        return NONE
    return (fit_vector if method == "vector" else fit_temperature)(probabilities, labels)


def choose(method: str, n: int, gain: Callable[[], tuple[float, float]]) -> str:
    """The method to fit: "none", "temperature" or "vector".

    Args:
      method: One of these, or "auto", which is "vector" if its gain is above `CLEARLY` errors.
      n: Number of images.
      gain: Returns the gain of "vector" over "temperature" and its error, see `held_out_gain`.

    Raises:
      ValueError: There are no images, or the method is unknown.
    """
    if n == 0:
        raise ValueError("no images to fit a calibration to")
    if method not in (*METHODS, AUTO):
        raise ValueError(f"method {method!r}, expected one of {', '.join((*METHODS, AUTO))}")
    if method != AUTO:
        return method
    mean, error = gain()
    return "vector" if mean > CLEARLY * error else "temperature"


def fit_temperature(probabilities: Probabilities, labels: Labels) -> Calibration:
    """The temperature, within `TEMPERATURES`, with the lowest loss."""
    logs, targets = _observations(probabilities, labels)

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logs / np.exp(log_temperature))).sum() / len(logs)

    # The loss is convex in 1 / temperature, so it has one minimum in the temperature's logarithm.
    found = scipy.optimize.minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return Calibration("temperature", float(np.exp(found.x)))


def fit_vector(probabilities: Probabilities, labels: Labels) -> Calibration:
    """A temperature, and a scale and a bias for each class, with the lowest loss.

    The temperature is that of `fit_temperature`. Scales and biases have normal priors around 1 and
    0 with a standard deviation of 1, so that a class of few images stays near the temperature. A
    class without images has the bias 0 and the mean of the other classes' scales.
    """
    temperature = fit_temperature(probabilities, labels).temperature
    present, labels = np.unique(labels, return_inverse=True)
    among = np.maximum(probabilities[:, present], _TINY)
    logs, targets = _observations(among / among.sum(axis=1, keepdims=True), labels)
    logs, n, classes = logs / temperature, len(logs), len(present)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change, bias = flat.reshape(2, classes)
        calibrated = log_softmax(logs * (1 + change) + bias)
        residual = np.exp(calibrated) - targets
        gradient = np.concatenate([np.einsum("nc,nc->c", residual, logs), residual.sum(axis=0)])
        value = np.square(flat).sum() / 2 - (targets * calibrated).sum()
        return value / n, (gradient + flat) / n

    found = scipy.optimize.minimize(loss, np.zeros(2 * classes), jac=True, method="BFGS")
    change, bias = found.x.reshape(2, classes)
    scales = np.full(probabilities.shape[1], 1 + change.mean())
    biases = np.zeros(probabilities.shape[1])
    scales[present], biases[present] = 1 + change, bias
    return Calibration("vector", temperature, tuple(biases.tolist()), tuple(scales.tolist()))


def refinement(probabilities: Probabilities, labels: Labels) -> float:
    """The mean loss in nats after the best temperature: what calibration cannot mend.

    Training with label smoothing or mixed images makes a network ever less confident than it is
    right, which raises the loss of epochs whose predictions are better. A calibration removes this
    difference after training, so epochs are better compared without it (Berta et al. 2025,
    Rethinking early stopping: refine, then calibrate, https://arxiv.org/abs/2501.19195).

    Args:
      probabilities: Class probabilities of at least one image; rows sum to 1.
      labels: True class indices.
    """
    fitted = fit_temperature(probabilities, labels)
    return float(_nll_of_each(fitted.apply(probabilities), labels).mean())


def vector_gain(probabilities: Probabilities, labels: Labels, seed: int = 0) -> tuple[float, float]:
    """By how much vector scaling lowers the loss of images that neither method was fitted to.

    Args:
      probabilities: Class probabilities of at least one image.
      labels: True class indices.
      seed: Seed of the folds.

    Returns:
      See `held_out_gain`.
    """
    fits = fit_temperature, fit_vector
    return held_out_gain(probabilities, labels, labels, seed, fits, _nll_of_each)


def held_out_gain(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, "n ..."],
    strata: Int[np.ndarray, " n"],
    seed: int,
    fits: tuple[Callable[..., Calibration], Callable[..., Calibration]],
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """By how much one fit lowers the loss of images that neither was fitted to, against another.

    Both are fitted to four of five stratified folds and compared on the fifth, in turn.

    Args:
      probabilities: Probabilities of at least one image.
      labels: Its labels.
      strata: A class of each image, to draw folds alike.
      seed: Seed of the folds.
      fits: The simple fit and the other one, functions of probabilities and labels.
      loss: Function of probabilities and labels: the loss of each image in nats.

    Returns:
      The mean difference of the losses, above 0 if the other fit is better, and its standard
      error, paired by image. (0, infinity) for fewer images than folds.
    """
    if len(labels) < FOLDS:
        return 0.0, np.inf
    fold, gains = _stratified_folds(strata, seed), np.empty(len(labels))
    for held_out in range(FOLDS):
        rest, out = fold != held_out, fold == held_out
        simple, other = (
            loss(fit(probabilities[rest], labels[rest]).apply(probabilities[out]), labels[out])
            for fit in fits
        )
        gains[out] = simple - other
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def _stratified_folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image; the images of a class are spread evenly over the folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def logarithms(probabilities: Float[np.ndarray, "*n classes"]) -> np.ndarray:
    """Logarithms in float64; probabilities below the smallest normal float32 count as it."""
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))


def _observations(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms and one-hot targets, of the images and of one more (see the module)."""
    least = probabilities.max(axis=1).argmin()
    runner_up = np.argsort(probabilities[least])[-2:][0]
    logs = logarithms(np.concatenate([probabilities, probabilities[least : least + 1]]))
    return logs, np.eye(probabilities.shape[1])[np.append(labels, runner_up)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax over the last axis.

    SciPy's takes four times as long, and a fit calls this a few hundred times.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _nll_of_each(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    true = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(true, SMALLEST_PROBABILITY, 1))
