"""How often the interval that resamples groups holds the true accuracy, by simulation.

python -m benchmarks.group_intervals [--trials=1000]

The accuracy of each group is drawn from a beta distribution, and the number of its images from a
log-normal one. For each number of groups it prints how often the interval of `metrics.grouped`, the
plain percentiles of the same resamples, and the interval of independent images hold the mean of the
beta distribution.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from bloodjax.metrics.intervals import wilson_interval
from bloodjax.metrics.resampling import expanded_percentile_interval

GROUPS = (2, 3, 4, 5, 7, 10, 20, 40)
ACCURACIES = (0.9, 0.98)
# Correlation of two images of a group: whether both are classified correctly.
CORRELATIONS = (0.05, 0.2)
# Standard deviation of the logarithm of a group's number of images.
SIZES = (0.3, 1.0)
RESAMPLES = 1000


def coverage(
    groups: int, accuracy: float, correlation: float, spread: float, trials: int, seed: int = 0
) -> tuple[float, float, float]:
    """Shares of the trials in which the three intervals hold the accuracy."""
    rng = np.random.default_rng(seed)
    weight = 1 / correlation - 1
    held = np.zeros(3)
    for _ in range(trials):
        n = np.maximum(1, np.exp(rng.normal(4, spread, groups)).round()).astype(int)
        hits = rng.binomial(n, rng.beta(accuracy * weight, (1 - accuracy) * weight, groups))
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
        samples = (counts @ hits) / (counts @ n)
        if hits.sum() == n.sum():
            expanded = wilson_interval(groups, groups)
        else:
            expanded = expanded_percentile_interval(samples, n)
        images = wilson_interval(int(hits.sum()), int(n.sum()))
        plain = np.percentile(samples, [2.5, 97.5])
        held += [low <= accuracy <= high for low, high in (expanded, plain, images)]
    return tuple((held / trials).tolist())


def main() -> None:
    """Prints a row for each number of groups: the lowest and the highest share of the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print("| groups | `metrics.grouped` | plain percentiles | images |\n|---|---|---|---|")
    for groups in GROUPS:
        cases = itertools.product(ACCURACIES, CORRELATIONS, SIZES)
        shares = np.array([coverage(groups, *case, trials) for case in cases])
        cells = [
            f"{low:.2f} to {high:.2f}"
            for low, high in zip(*np.sort(shares, 0)[[0, -1]], strict=True)
        ]
        print(f"| {groups} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
