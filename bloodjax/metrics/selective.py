"""Selective classification: the error on the answers that are kept, and how many are kept.

A classifier that refers images of low confidence to a person trades coverage (the share of images
that it answers) for risk (the share of wrong answers among these). El-Yaniv and Wiener 2010 (On the
foundations of noise-free selective classification, Journal of Machine Learning Research 11);
Geifman and El-Yaniv 2017 (Selective classification for deep neural networks,
https://arxiv.org/abs/1705.08500).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from bloodjax.metrics.intervals import exact_interval

# Threshold above every confidence: all images are referred.
NOTHING_ANSWERED = 2.0
# Points of a risk-coverage curve that is written to a file.
POINTS = 50

Confidence = Float[np.ndarray, " n"]
Correct = Bool[np.ndarray, " n"]


def aurc(confidence: Confidence, correct: Correct) -> float:
    """Area under the risk-coverage curve: mean risk over the coverages 1/n, 2/n, ..., 1.

    Images of equal confidence are answered together in any order, so each position within a tie
    counts the mean error of the tie.

    Args:
      confidence: Confidence of at least one image.
      correct: Whether its predicted class is right.
    """
    return float(_risks(confidence, correct).mean())


def aurc_interval(
    confidence: Confidence, correct: Correct, *, bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of `aurc` over resamples of the images.

    Args:
      confidence: Confidence of at least one image.
      correct: Whether its predicted class is right.
      bootstrap: Number of resamples.
      seed: Seed of the resamples.
    """
    n, rng = len(correct), np.random.default_rng(seed)
    # Resampled ranks of sorted images, sorted again, are in the order of confidence.
    order = np.argsort(-confidence, kind="stable")
    _, tie = np.unique(confidence[order], return_inverse=True)
    wrong, areas = ~correct[order], np.empty(bootstrap)
    for i in range(bootstrap):
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        errors = _mean_of_ties(tie, wrong, counts)
        areas[i] = (np.cumsum(np.repeat(errors, counts)) / np.arange(1, n + 1)).mean()
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


def curve(confidence: Confidence, correct: Correct, points: int = POINTS) -> dict[str, list]:
    """The risk-coverage curve at about equal steps of coverage, with intervals.

    Args:
      confidence: Confidence of at least one image.
      correct: Whether its predicted class is right.
      points: Largest number of points.

    Returns:
      `coverage`, ascending in (0, 1]; `error`, the risk at each; and `error_ci95`, its
      Clopper-Pearson interval [low, high] (see `exact_interval`).
    """
    n = len(correct)
    risks = _risks(confidence, correct)
    kept = np.unique(np.ceil(np.linspace(n / points, n, points)).astype(int).clip(1, n))
    errors = np.rint(risks[kept - 1] * kept).astype(int)
    return {
        "coverage": (kept / n).tolist(),
        "error": risks[kept - 1].tolist(),
        "error_ci95": [
            list(exact_interval(int(e), int(k))) for e, k in zip(errors, kept, strict=True)
        ],
    }


def choose_threshold(confidence: Confidence, correct: Correct, target_error: float) -> float:
    """The lowest threshold at which the error of the answered images is at most `target_error`.

    Only observed confidences are candidates. If every answer is right, the threshold is the lowest
    confidence of all, so images of a lower confidence than any of these are referred later.

    Args:
      confidence: Confidence of n images.
      correct: Whether its predicted class is right.
      target_error: Largest share of wrong answers, 0..1.

    Returns:
      The threshold: images with a confidence of at least this are answered. `NOTHING_ANSWERED` if
      no threshold meets the target.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_, wrong = confidence[order], ~correct[order]
    errors = np.cumsum(wrong)
    # The last image of each tie: a threshold answers all images of equal confidence.
    last = np.flatnonzero(np.append(sorted_[1:] != sorted_[:-1], True)) if len(wrong) else []
    allowed = [i for i in last if errors[i] <= target_error * (i + 1)]
    return float(sorted_[allowed[-1]]) if allowed else NOTHING_ANSWERED


def operating_point(answered: Bool[np.ndarray, " n"], correct: Correct) -> dict[str, object]:
    """How many images are answered, and the error on these.

    Args:
      answered: Whether each of at least one image is answered.
      correct: Whether its predicted class is right.

    Returns:
      `coverage` and `referred`, shares of all images; `error`, the share of wrong answers among
      the answered images, and `error_ci95`, its Clopper-Pearson interval. The last two are None if
      no image is answered.
    """
    n, kept = len(answered), int(answered.sum())
    wrong = int((answered & ~correct).sum())
    return {
        "coverage": kept / n,
        "referred": 1 - kept / n,
        "error": wrong / kept if kept else None,
        "error_ci95": list(exact_interval(wrong, kept)) if kept else None,
    }


def _risks(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Error of the k most confident images for k = 1..n."""
    order = np.argsort(-confidence, kind="stable")
    _, tie = np.unique(confidence[order], return_inverse=True)
    wrong = _mean_of_ties(tie, ~correct[order], np.ones(len(order)))
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def _mean_of_ties(tie: np.ndarray, wrong: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean error of each image's tie, where an image counts `counts` times."""
    sizes = np.bincount(tie, counts)
    return (np.bincount(tie, counts * wrong) / np.maximum(sizes, 1))[tie]
