"""Calibration of probabilities of labels of which an image can have any number.

Each label has its own map, a logistic regression on the log-odds (Platt, "Probabilistic outputs for
support vector machines", 1999). A bias makes good what weights of the positives add to the
log-odds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float, Int

from bloodjax.metrics import calibration
from bloodjax.metrics.calibration import Calibration, held_out_gain

# Probabilities closer to 0 and 1 than this count as it: float32 has no others close to 1.
_CLOSEST = float(np.finfo(np.float32).eps)
# Standard deviation of the normal priors of scales (around 1) and biases (around 0).
_SPREAD = 3.0

Probabilities = Float[np.ndarray, "n labels"]
Labels = Int[np.ndarray, "n labels"]


@dataclasses.dataclass(frozen=True)
class LabelCalibration(Calibration):
    """A map from probabilities p to sigmoid(scale * log(p / (1 - p)) + bias), for each label.

    The temperature is 1. "temperature" has no bias, "vector" has both.
    """

    def apply(self, probabilities: Float[np.ndarray, "*n labels"]) -> np.ndarray:
        """Calibrated probabilities, in the dtype of `probabilities`."""
        if self.method == "none":
            return probabilities
        logits = log_odds(probabilities) * np.asarray(self.scale)
        if self.bias:
            logits = logits + np.asarray(self.bias)
        return scipy.special.expit(logits).astype(probabilities.dtype)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, and what tells this kind from `Calibration`."""
        return {**super().to_dict(), "output": "sigmoid"}


def fit(
    probabilities: Probabilities,
    labels: Labels,
    strata: Int[np.ndarray, " n"],
    method: str,
    seed: int,
) -> LabelCalibration:
    """Fits a calibration to images that the network was not trained on.

    Args:
      probabilities: Probability of each label of at least one image.
      labels: 1 for each label that an image has and 0 for each other.
      strata: A class of each image, to draw folds alike (`Dataset.strata`).
      method: "none"; "temperature", a scale for each label; "vector", a scale and a bias for each;
        "auto": "temperature", unless "vector" is clearly better on held-out folds.
      seed: Seed of the folds.

    Raises:
      ValueError: There are no images, or the method is unknown.
    """
    fits = tuple(functools.partial(_fit, method=one) for one in ("temperature", "vector"))
    method = calibration.choose(
        method,
        len(labels),
        lambda: held_out_gain(probabilities, labels, strata, seed, fits, _nll_of_each),
    )
    return LabelCalibration("none") if method == "none" else _fit(probabilities, labels, method)


def refinement(probabilities: Probabilities, labels: Labels) -> float:
    """The mean loss of a label in nats after the best scale of each; see `calibration.refinement`.

    Args:
      probabilities: Probability of each label of at least one image.
      labels: 1 for each label that an image has and 0 for each other.
    """
    fitted = _fit(probabilities, labels, "temperature")
    return float(_nll_of_each(fitted.apply(probabilities), labels).mean())


def log_odds(probabilities: Float[np.ndarray, "*n labels"]) -> np.ndarray:
    """log(p / (1 - p)) in float64; probabilities within 1.2e-7 of 0 and 1 count as that."""
    return scipy.special.logit(np.clip(probabilities.astype(np.float64), _CLOSEST, 1 - _CLOSEST))


def _fit(probabilities: np.ndarray, labels: np.ndarray, method: str) -> LabelCalibration:
    maps = []
    for z, true in zip(log_odds(probabilities).T, labels.T.astype(np.float64), strict=True):
        start = np.zeros(2 if method == "vector" else 1)
        # A scale of 0 or less would turn the order of the images round.
        bounds = [(-0.95, None), (None, None)][: len(start)]
        found = scipy.optimize.minimize(
            _loss, start, args=(z, true), jac=True, method="L-BFGS-B", bounds=bounds
        )
        maps.append(found.x)
    change, *bias = np.array(maps).T
    return LabelCalibration(
        method, 1.0, tuple(bias[0].tolist()) if bias else (), tuple((1 + change).tolist())
    )


def _loss(flat: np.ndarray, z: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean loss of a label and its gradient by the change of the scale and, if fitted, the bias."""
    bias = flat[1] if len(flat) > 1 else 0.0
    fitted = z * (1 + flat[0]) + bias
    residual = scipy.special.expit(fitted) - true
    value = (np.logaddexp(0, fitted) - true * fitted).sum() + np.square(flat).sum() / _SPREAD**2 / 2
    gradient = np.array([(residual * z).sum(), residual.sum()])[: len(flat)] + flat / _SPREAD**2
    return float(value) / len(z), gradient / len(z)


def _nll_of_each(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    of_true = np.where(labels == 1, probabilities, 1 - probabilities)
    return -np.log(np.clip(of_true, calibration.SMALLEST_PROBABILITY, 1)).mean(axis=1)
