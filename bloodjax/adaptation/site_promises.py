"""What a run promises at a site without labels: its accuracy, and the error behind its referral.

Neither is believed where the detector finds many images of the site unlike the training images.
Both come from validation images, which no change makes like those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bloodjax.adaptation import site_accuracy
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.cli import console
from bloodjax.data import lazy
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation.answers import Answers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.metrics import wilson_interval
from bloodjax.metrics.accuracy_estimation import AccuracyEstimate

_PROMISED = 400  # validation images that the referral threshold is tried on
_MOST_UNLIKE = 0.25  # share of images unlike the training images above which nothing is believed


def accuracy(
    when: str, model: Classifier, images: SiteImages, validation: Dataset
) -> dict[str, Any]:
    """Estimates the accuracy at the site, and logs it.

    Args:
      when: "before" or "after" the remedies.
      model: The classifier at its site.
      images: Images of the site.
      validation: Validation images of the run, with their labels.

    Returns:
      An entry of "accuracy_estimate" of `adaptation.json`.
    """
    squares = images.dataset.images
    answers = model.answer(squares)
    found = site_accuracy.estimate(model, squares, answers.probabilities, validation)
    unlike = share_unlike(answers)
    is_extrapolated = (unlike or 0.0) > _MOST_UNLIKE
    _say_estimate(when, found, unlike if is_extrapolated else None)
    return found.to_dict() | {"unlike": unlike, "is_extrapolated": is_extrapolated}


def referral(model: Classifier, images: SiteImages, validation: Dataset) -> dict[str, Any] | None:
    """What the referral threshold does at the site; None without one.

    The error is that of validation images with the look of the site. It says little where the
    detector finds many images of the site unlike the training images: there the promise does not
    hold, whatever it is.
    """
    if model.referral is None:
        return None
    answers = model.answer(images.dataset.images)
    unlike = share_unlike(answers) or 0.0
    possible = np.isin(model.classes, model.possible_classes)
    rows = np.flatnonzero(possible[validation.labels])
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(rows)[:_PROMISED])
    wrong = np.zeros(0, bool)
    if len(rows):
        known = np.asarray(lazy.take(validation.images, rows))
        alike = site_accuracy.with_look_of(images.measured(), known, rng)
        tried = model.answer(alike)
        wrong = (tried.predicted != validation.labels[rows])[~tried.refer]
    low, high = wilson_interval(int(wrong.sum()), len(wrong)) if len(wrong) else (0.0, 1.0)
    holds = None
    if unlike > _MOST_UNLIKE:
        holds = False
    elif len(wrong):
        holds = low <= model.referral.target_error
    return {
        "threshold": float(model.referral.threshold),
        "target_error": float(model.referral.target_error),
        "referred": float(answers.refer.mean()),
        "estimated_error": float(wrong.mean()) if len(wrong) else None,
        "error_low": low,
        "error_high": high,
        "n": len(wrong),
        "unlike": unlike,
        "holds": holds,
    }


def share_unlike(answers: Answers) -> float | None:
    """The share of images that are unlike the training images; None without a detector."""
    return None if answers.distance is None else float(np.mean(answers.unlike))


def _say_estimate(when: str, found: AccuracyEstimate, unlike: float | None) -> None:
    words = (
        f"estimated accuracy {when}: {found.estimate:.3f} ({found.low:.3f} to {found.high:.3f}), "
        "without labels of the site"
    )
    if unlike is not None:
        words += f"; do not rely on it: {100 * unlike:.0f} % of the images are unlike any it knows"
    console.log_info(words)
