"""Metrics of a classifier's probabilities, and tests of whether two classifiers differ.

Labels are class indices [n], or 0 and 1 for each label of each image [n, labels]: then the metrics
are those of `multi_label`, otherwise those of `classification`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from bloodjax.metrics import calibration, classification, label_calibration, multi_label
from bloodjax.metrics.classification import ECE_BINS, SMALLEST_PROBABILITY
from bloodjax.metrics.intervals import wilson_interval

__all__ = [
    "ECE_BINS",
    "SMALLEST_PROBABILITY",
    "evaluate",
    "quick",
    "reliability",
    "wilson_interval",
]

Probabilities = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, "n ..."]


def evaluate(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """The content of `metrics.json`; see `classification.evaluate` and `multi_label.evaluate`."""
    return _kind(labels).evaluate(probabilities, labels, classes, bootstrap=bootstrap, seed=seed)


def quick(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """The metrics of an epoch: `refinement`, and those of `quick` in the two modules.

    `refinement` is the loss after the temperature that suits these images best; see
    `calibration.refinement` and `label_calibration.refinement`.
    """
    refinement = (label_calibration if labels.ndim == 2 else calibration).refinement
    known = _kind(labels).quick(probabilities, labels)
    return {**known, "refinement": refinement(probabilities, labels)}


def reliability(
    probabilities: Probabilities, labels: Labels, bins: int = ECE_BINS
) -> dict[str, list]:
    """Confidence and accuracy in bins; see `classification` and `multi_label`."""
    return _kind(labels).reliability(probabilities, labels, bins)


def _kind(labels: Labels):
    return multi_label if labels.ndim == 2 else classification
