"""The bootstrap: resamples of images or groups, and the intervals that they give.

A resample is the number of times that each unit, an image or a group of images, counts. A metric
that is a weighted sum over units is then one matrix product for many resamples at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy
from jaxtyping import Float, Int

MAX_ENTRIES = 2**22  # Entries (float64) of the largest table of a chunk of resamples: 32 MB.


def draw_counts(
    units: int, resamples: int, seed: int, *, rows: int = 0
) -> Iterator[Float[np.ndarray, "units r"]]:
    """Draws resamples with replacement, in chunks that fit into memory.

    Args:
      units: Number of units, each of which is as likely as the others.
      resamples: Number of resamples over all chunks.
      seed: Seed of the resamples.
      rows: Rows of the largest table that the caller computes of a chunk, if more than `units`.

    Yields:
      Number of times that each unit occurs in each of r resamples.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, MAX_ENTRIES // max(units, rows))
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        cells = rng.integers(units, size=(units, r)) * r + np.arange(r)
        yield np.bincount(cells.ravel(), minlength=units * r).reshape(units, r).astype(np.float64)


def resampled_means(
    values: Float[np.ndarray, "units k"], resamples: int, seed: int
) -> Float[np.ndarray, "r k"]:
    """Means over the units of each resample.

    Args:
      values: k values of each unit.
      resamples: Number of resamples.
      seed: Seed of the resamples.
    """
    draws = draw_counts(len(values), resamples, seed)
    return np.concatenate([counts.T @ values for counts in draws]) / len(values)


def percentile_interval(values: Float[np.ndarray, " r"], tail: float = 2.5) -> list[float] | None:
    """The percentiles `tail` and 100 - `tail` of a metric, given its values in resamples.

    Args:
      values: The metric of each resample, NaN where it is undefined, which is left out.
      tail: The lower percentile, 0..50; 2.5 gives the 95 % interval.

    Returns:
      The lower and the upper limit; None if no value is defined.
    """
    defined = values[np.isfinite(values)]
    return np.percentile(defined, [tail, 100 - tail]).tolist() if len(defined) else None


def with_width(interval: list[float] | None) -> list[float] | None:
    """The interval, or None if it has no width.

    Resamples of what is all right, or all wrong, do not differ, which says nothing of chance.
    """
    return interval if interval is not None and interval[0] < interval[1] else None


def reflected(interval: list[float] | None, value: float) -> list[float] | None:
    """The interval of a metric of 0 or more that resampling biases upwards, such as `ece`.

    The percentiles are mirrored at the metric, which takes the bias away in place of adding it
    again (the basic bootstrap interval: Davison and Hinkley 1997, section 5.2), and the interval is
    extended to the metric.

    Args:
      interval: Percentiles of the resamples.
      value: The metric of the images themselves.
    """
    if interval is None:
        return None
    low, high = (2 * value - limit for limit in reversed(interval))
    return [max(0.0, min(low, value)), max(high, value)]


def expanded_percentile_interval(
    values: Float[np.ndarray, " r"], sizes: Int[np.ndarray, " units"]
) -> list[float] | None:
    """The 95 % interval of a metric, given its values in resamples of groups.

    Percentiles of the resamples are too narrow for few groups. They are moved outwards as Student's
    distribution with g - 1 degrees of freedom is wider than the normal one, and by the bias of the
    variance (the expanded percentile interval: Hesterberg 2015, section 5.3 of
    https://arxiv.org/abs/1411.5279); g is the effective number of groups.

    Args:
      values: The metric of each resample, NaN where it is undefined.
      sizes: Number of images of each group.

    Returns:
      The lower and the upper limit; None for a single group, or if no value is defined.
    """
    if len(sizes) < 2:
        return None
    effective = max(effective_number(sizes), 1.01)
    student = scipy.stats.t.ppf(0.975, max(effective - 1, 1.0))
    tail = scipy.stats.norm.cdf(-np.sqrt(effective / (effective - 1)) * student)
    return percentile_interval(values, 100 * float(tail))


def effective_number(sizes: Int[np.ndarray, " units"]) -> float:
    """Number of groups of equal size with the same variance: Kish's (sum n)^2 / sum n^2."""
    return float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum())
