"""Ratios, and means of them, where 0/0 is undefined: NaN in arrays, None in `metrics.json`."""

from __future__ import annotations

import numpy as np


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN if the denominator is 0."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, ignoring NaN; NaN if all values are."""
    return ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def number_or_none(value: float) -> float | None:
    """A Python number; None for what is not finite."""
    return float(value) if np.isfinite(value) else None
