"""The accuracy of a classifier on images without labels, estimated from its probabilities.

  average confidence        The mean probability of the predicted class. Calibrated probabilities
                            make it right at home; at another site it is too high.
  difference of confidences The accuracy in validation, less the fall of the average confidence
                            (Guillory et al. 2021, https://arxiv.org/abs/2107.03315).
  average thresholded confidence (ATC)  The share of images whose score is above a threshold, which
                            is chosen so that the share on labelled images is their accuracy (Garg
                            et al. 2022, https://arxiv.org/abs/2201.04234). The score is the
                            probability of the predicted class, or the negative entropy.

`estimate` is the mean of ATC with both scores. Their errors have opposite signs in most cases: the
entropy also falls where the other classes become more even. A threshold from validation is too low
where a classifier is confidently wrong. So it is also chosen on labelled images that were changed,
as by distortions or to the look of the site. Where the classifier is clearly worse on these, the
lowest estimate counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bloodjax.metrics import calibration
from bloodjax.metrics.intervals import wilson_interval

# A set of changed images counts if the accuracy on it is lower than in validation by so much. With
# fewer errors, its threshold is hardly known.
CLEARLY_WORSE = 0.05
# Of an interval that is wider, `AccuracyEstimate.is_vague` is true.
_VAGUE = 0.3

Probabilities = Float[np.ndarray, "n classes"]
Reference = tuple[Float[np.ndarray, "_ classes"], Int[np.ndarray, " _"]]
Score = Callable[[Probabilities], Float[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True)
class AccuracyEstimate:
    """An estimate of the accuracy on unlabelled images.

    Attributes:
      estimate: The accuracy, 0..1.
      low: Lower end of a 95 % interval: the lowest of the methods' intervals by bootstrap.
      high: Upper end, the highest of them.
      method: Name of the method and of the labelled images behind `estimate`.
      by_method: Method and labelled images -> estimate; those that do not count are in it too.
      reference_accuracy: Labelled images -> accuracy on them.
    """

    estimate: float
    low: float
    high: float
    method: str
    by_method: Mapping[str, float]
    reference_accuracy: Mapping[str, float]

    @property
    def is_vague(self) -> bool:
        """Whether the interval is so wide that the accuracy is hardly known."""
        return self.high - self.low > _VAGUE

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, and `is_vague`."""
        return dataclasses.asdict(self) | {"is_vague": self.is_vague}


def average_confidence(probabilities: Probabilities) -> float:
    """The mean probability of the predicted class of at least one image."""
    return float(confidence(probabilities).mean())


def difference_of_confidences(probabilities: Probabilities, reference: Reference) -> float:
    """The accuracy on labelled images, less the fall of the average confidence; 0..1.

    Args:
      probabilities: Calibrated class probabilities of at least one unlabelled image.
      reference: Those of at least one labelled image, and its true class index.
    """
    fall = average_confidence(reference[0]) - average_confidence(probabilities)
    return float(np.clip(accuracy(reference) - fall, 0, 1))


def thresholded_confidence(
    probabilities: Probabilities, reference: Reference, score: Score
) -> float:
    """ATC; see the module.

    Args:
      probabilities: Class probabilities of at least one unlabelled image.
      reference: Those of at least one labelled image, and its true class index.
      score: `confidence` or `negative_entropy`.
    """
    return _share_sure(score(probabilities), score(reference[0]), accuracy(reference))


def _share_sure(scores: np.ndarray, known: np.ndarray, right: float) -> float:
    """The share of scores above the threshold above which the share `right` of known ones is.

    Of those that equal the threshold, as many count as of the known ones have to.
    """
    threshold = np.quantile(known, 1 - right)
    tied = (known == threshold).mean()
    share = np.clip((right - (known > threshold).mean()) / tied, 0, 1) if tied else 1.0
    return float((scores > threshold).mean() + share * (scores == threshold).mean())


def accuracy(reference: Reference) -> float:
    """The share of labelled images that are predicted as labelled."""
    probabilities, labels = reference
    return float((probabilities.argmax(axis=1) == labels).mean())


def confidence(probabilities: Probabilities) -> Float[np.ndarray, " n"]:
    """The probability of the predicted class."""
    return probabilities.max(axis=1).astype(np.float64)


def negative_entropy(probabilities: Probabilities) -> Float[np.ndarray, " n"]:
    """The sum of p log p over the classes, in nats; 0 for certainty."""
    return (probabilities * calibration.logarithms(probabilities)).sum(axis=1)


SCORES: Mapping[str, Score] = {"confidence": confidence, "entropy": negative_entropy}


def estimate(
    probabilities: Probabilities,
    validation: Reference,
    changed: Mapping[str, Reference],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> AccuracyEstimate:
    """Estimates the accuracy on unlabelled images.

    Args:
      probabilities: Calibrated class probabilities of at least one unlabelled image, as they are
        used: if only some classes can occur, the others have the probability 0.
      validation: Calibrated class probabilities of validation images, and their true class indices,
        with all classes of the run.
      changed: Name -> labelled images that were changed, with probabilities as they are used.
      bootstrap: Number of resamples of all images, at least 1.
      seed: Seed of the resamples.
    """
    references = {"validation": validation, **changed}
    known = {name: accuracy(reference) for name, reference in references.items()}
    counted = [
        name
        for name in references
        if name == "validation" or known[name] <= known["validation"] - CLEARLY_WORSE
    ]
    each = {
        (name, score): thresholded_confidence(probabilities, references[name], SCORES[score])
        for name in references
        for score in SCORES
    }
    means = {name: float(np.mean([each[name, score] for score in SCORES])) for name in references}
    lowest = min(counted, key=means.__getitem__)
    rng = np.random.default_rng(seed)
    intervals = np.array(
        [
            _interval(probabilities, references[name], score, bootstrap, rng)
            for name in counted
            for score in SCORES.values()
        ]
    )
    # Resamples of images that are all surer than every reference do not differ.
    least, most = wilson_interval(round(means[lowest] * len(probabilities)), len(probabilities))
    by_method = {
        "average confidence": average_confidence(probabilities),
        "difference of confidences": difference_of_confidences(probabilities, validation),
        **{f"ATC by {score}, {name}": value for (name, score), value in each.items()},
    }
    return AccuracyEstimate(
        estimate=means[lowest],
        low=float(min(intervals[:, 0].min(), means[lowest], least)),
        high=float(max(intervals[:, 1].max(), means[lowest], most)),
        method=f"average thresholded confidence, {lowest}",
        by_method=by_method,
        reference_accuracy=known,
    )


def _interval(
    probabilities: Probabilities,
    reference: Reference,
    score: Score,
    bootstrap: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of ATC over resamples of both sets of images."""
    scores, known = score(probabilities), score(reference[0])
    correct = reference[0].argmax(axis=1) == reference[1]
    values = np.empty(bootstrap)
    for i in range(bootstrap):
        chosen = rng.integers(len(known), size=len(known))
        drawn = scores[rng.integers(len(scores), size=len(scores))]
        values[i] = _share_sure(drawn, known[chosen], correct[chosen].mean())
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
