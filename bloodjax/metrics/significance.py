"""Two classifiers on the same images: is one better, or is that chance?"""

from __future__ import annotations

import numpy as np
import scipy.stats
from jaxtyping import Float, Int


def compare(
    probabilities: Float[np.ndarray, "n classes"],
    other: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """The difference in accuracy, image by image.

    The interval is the paired bootstrap's: images are drawn with replacement, and both answers to
    an image go with it. A resample's difference depends only on how many of its images were
    gained and lost, which are multinomial. `p` is the exact test of McNemar (1947): whether a
    image on which the two differ is as likely to be gained as lost.

    Args:
      probabilities: of the one.
      other: of the one that it is held against.
      labels: true class indices.
      bootstrap: number of resamples.
      seed: of the resamples.

    Returns:
      `accuracy` and `accuracy_without` (the other's), `difference` and its `ci95`, and under
      "mcnemar" the images `gained` and `lost`, and `p`.
    """
    right = probabilities.argmax(axis=1) == labels
    right_without = other.argmax(axis=1) == labels
    n = len(labels)
    gained = int(np.sum(right & ~right_without))
    lost = int(np.sum(~right & right_without))
    shares = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=bootstrap)
    differences = (drawn[:, 0] - drawn[:, 1]) / n
    differ = gained + lost
    return {
        "accuracy": float(right.mean()),
        "accuracy_without": float(right_without.mean()),
        "difference": (gained - lost) / n,
        "ci95": np.percentile(differences, [2.5, 97.5]).tolist(),
        "mcnemar": {
            "gained": gained,
            "lost": lost,
            "p": float(scipy.stats.binomtest(gained, differ).pvalue) if differ else 1.0,
        },
    }
