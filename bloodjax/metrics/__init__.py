"""Metrics of a classifier's probabilities, and tests of whether two classifiers differ."""

from bloodjax.metrics.classification import (
    ECE_BINS,
    SMALLEST_PROBABILITY,
    evaluate,
    quick,
    reliability,
    wilson_interval,
)

__all__ = [
    "ECE_BINS",
    "SMALLEST_PROBABILITY",
    "evaluate",
    "quick",
    "reliability",
    "wilson_interval",
]
