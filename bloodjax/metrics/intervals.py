"""Confidence intervals of proportions, and of means of proportions, by formula.

`resampling` has the intervals of metrics that are no proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float, Int

_NORMAL_95 = 1.959963984540054  # 97.5th percentile of the normal distribution


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the bootstrap's, it has a width at 0 and 1: 20 of 20 successes give (0.84, 1.0).

    Args:
      successes: Number of successes, 0..`trials`.
      trials: Number of trials, at least 1.

    Returns:
      The lower and the upper limit, in 0..1.

    Raises:
      ValueError: The numbers are out of range.
    """
    return _proportion_interval(successes, trials, "wilson")


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934).

    It covers the true proportion in at least 95 % of cases, for every proportion and number of
    trials, which an upper limit on a rare error needs.

    Args:
      successes: Number of successes, 0..`trials`.
      trials: Number of trials, at least 1.

    Returns:
      The lower and the upper limit, in 0..1.

    Raises:
      ValueError: The numbers are out of range.
    """
    return _proportion_interval(successes, trials, "exact")


def _proportion_interval(
    successes: int, trials: int, method: Literal["wilson", "exact"]
) -> tuple[float, float]:
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method=method)
    return float(interval.low), float(interval.high)


def wilson_intervals(
    successes: Float[np.ndarray, " g"] | Int[np.ndarray, " g"], trials: Int[np.ndarray, " g"]
) -> Float[np.ndarray, "g 2"]:
    """`wilson_interval` of many proportions at once.

    Args:
      successes: Numbers of successes, 0..`trials`. They may be fractions, such as the sum of the
        accuracies of groups, of which each is a trial.
      trials: Numbers of trials, at least 1.

    Returns:
      The lower and the upper limit of each, in 0..1.
    """
    share, z2 = successes / trials, _NORMAL_95**2
    centre = share + z2 / (2 * trials)
    spread = np.sqrt(share * (1 - share) * z2 / trials + (z2 / (2 * trials)) ** 2)
    limits = np.stack([centre - spread, centre + spread], axis=1) / (1 + z2 / trials)[:, None]
    return np.clip(limits, 0.0, 1.0)


def mean_interval(
    proportions: Sequence[float], intervals: Sequence[Sequence[float]], count: int
) -> tuple[float, float]:
    """A 95 % interval of a mean of independent proportions, from the interval of each.

    The squared distances of the limits from the proportions add up like variances (MOVER: Zou and
    Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27,
    2008). With Wilson's intervals it has a width where all proportions are 0 or 1.

    Args:
      proportions: The proportions that were measured.
      intervals: The 95 % interval of each.
      count: Number of proportions in the mean; those that are not given are 0 for certain.

    Returns:
      The lower and the upper limit, in 0..1.
    """
    values, (low, high) = np.array(proportions), np.array(intervals).T
    mean = values.sum() / count
    below, above = (np.sqrt(np.sum((values - limit) ** 2)) / count for limit in (low, high))
    return max(0.0, float(mean - below)), min(1.0, float(mean + above))
