"""Paired comparison of two classifiers on the same images."""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float, Int


def compare(
    probabilities: Float[np.ndarray, "n classes"],
    other: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """Compares the accuracy of two classifiers.

    The interval is from the paired bootstrap: a resampled image keeps both of its predictions. The
    difference in a resample depends only on the number of images gained and lost, which follow a
    multinomial distribution. `p` is from the exact McNemar test (1947): whether an image that only
    one classifier gets right is equally likely to be gained or lost.

    Args:
      probabilities: Class probabilities by the first classifier.
      other: Class probabilities by the second classifier.
      labels: True class indices.
      bootstrap: Number of resamples.
      seed: Seed of the resamples.

    Returns:
      `accuracy`, `accuracy_without` (that of `other`), their `difference` with its `ci95`, and
      under "mcnemar" the number of images `gained` and `lost` by the first, and `p`.
    """
    correct = probabilities.argmax(axis=1) == labels
    correct_other = other.argmax(axis=1) == labels
    n = len(labels)
    gained = int(np.sum(correct & ~correct_other))
    lost = int(np.sum(~correct & correct_other))
    shares = np.array([gained, lost, n - gained - lost]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=bootstrap)
    differences = (counts[:, 0] - counts[:, 1]) / n
    discordant = gained + lost
    return {
        "accuracy": float(correct.mean()),
        "accuracy_without": float(correct_other.mean()),
        "difference": (gained - lost) / n,
        "ci95": np.percentile(differences, [2.5, 97.5]).tolist(),
        "mcnemar": {
            "gained": gained,
            "lost": lost,
            "p": float(scipy.stats.binomtest(gained, discordant).pvalue) if discordant else 1.0,
        },
    }
