"""The answers of a classifier: classes, confidences, and which images to refer to a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from bloodjax.metrics import novelty

UNSURE = "unsure"
UNLIKE = "unlike the training cells"


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of a classifier to n images.

    Attributes:
      probabilities: Class probabilities, calibrated where the run has a calibration.
      predicted: Index of the class with the highest probability.
      confidence: Probability of the predicted class.
      refer: Whether a person should look at the image.
      why: The reasons to refer it, joined by ", "; "" if there are none.
      distance: Score of the detector of unlike images, larger for more unlike; None without one.
      sets: Whether a class is in the image's conformal set; None if the run has no such sets.
      is_judged: Whether the run has a threshold of confidence or a detector. Otherwise `refer` is
        False for every image because nothing is known, and tables leave the columns empty.
    """

    probabilities: Float[np.ndarray, "n classes"]
    predicted: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    refer: Bool[np.ndarray, " n"]
    why: tuple[str, ...]
    distance: Float[np.ndarray, " n"] | None = None
    sets: Bool[np.ndarray, "n classes"] | None = None
    is_judged: bool = True

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def unsure(self) -> Bool[np.ndarray, " n"]:
        """Whether the confidence is below the threshold."""
        return np.array([UNSURE in why for why in self.why], bool)

    @property
    def unlike(self) -> Bool[np.ndarray, " n"]:
        """Whether the image is unlike the training cells."""
        return np.array([UNLIKE in why for why in self.why], bool)


def judge(
    probabilities: Float[np.ndarray, "n classes"],
    *,
    threshold: float | None = None,
    unlike: Bool[np.ndarray, " n"] | None = None,
    distance: Float[np.ndarray, " n"] | None = None,
    sets: Bool[np.ndarray, "n classes"] | None = None,
) -> Answers:
    """The answers with these class probabilities.

    Args:
      probabilities: Class probabilities of n images.
      threshold: Lowest confidence of an image that is not referred as unsure. None: unknown.
      unlike: Whether an image is unlike the training cells. None: unknown.
      distance: Score that `unlike` is from.
      sets: Whether a class is in an image's conformal set.
    """
    n = len(probabilities)
    predicted = probabilities.argmax(axis=1) if n else np.zeros(0, int)
    confidence = probabilities[np.arange(n), predicted]
    none = np.zeros(n, bool)
    # This form refers NaN too.
    unsure = none if threshold is None else ~(confidence >= threshold)
    apart = none if unlike is None else unlike
    why = tuple(
        ", ".join([UNSURE] * bool(low) + [UNLIKE] * bool(far))
        for low, far in zip(unsure, apart, strict=True)
    )
    return Answers(
        probabilities,
        predicted,
        confidence,
        unsure | apart,
        why,
        distance,
        sets,
        is_judged=threshold is not None or unlike is not None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelAnswers(Answers):
    """The answers to images that have any number of labels.

    `predicted` is the most probable label and `confidence` its probability. No image is referred.

    Attributes:
      has: Whether each label is predicted: its probability is above its threshold.
    """

    has: Bool[np.ndarray, "n labels"]


def judge_labels(
    probabilities: Float[np.ndarray, "n labels"], thresholds: Sequence[float]
) -> LabelAnswers:
    """The answers with these probabilities of labels.

    Args:
      probabilities: Probability of each label of n images.
      thresholds: Threshold of each label, or empty for 0.5.
    """
    found = vars(judge(probabilities))
    above = probabilities > (np.array(thresholds) if len(thresholds) else 0.5)
    return LabelAnswers(**found, has=above)


def concatenate(parts: Sequence[Answers]) -> Answers:
    """The answers to all images, from those to consecutive parts of them.

    Args:
      parts: At least one, all from one classifier.
    """
    first = parts[0]

    def joined(name: str):
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        # Whether the run judges, and fields that are None, are the same in all parts.
        return sum(values, ()) if isinstance(values[0], tuple) else values[0]

    return type(first)(**{field.name: joined(field.name) for field in dataclasses.fields(first)})


def columns(answers: Answers | None) -> dict[str, object]:
    """The arguments of `tables.predictions` that say what is referred; none if it is unknown."""
    if answers is None:
        return {}
    if isinstance(answers, LabelAnswers):
        return {"has": answers.has}
    known = {"refer": answers.refer, "why": answers.why} if answers.is_judged else {}
    return known | ({} if answers.sets is None else {"sets": answers.sets})


def unlike_remark(
    unlike: int, n: int, rate: float = 0.01, n_validation: int | None = None
) -> str | None:
    """One line if images are unlike the training images (`novelty.are_unlike`), otherwise None.

    Args:
      unlike: Number of images that the detector rejects.
      n: Number of images.
      rate: Share of validation images that its threshold rejects.
      n_validation: Number of these images; None if it is not known.
    """
    if not novelty.are_unlike(unlike, n, rate, n_validation):
        return None
    expected = 100 * novelty.expected_share(rate, n_validation)
    return (
        f"these images are unlike the training ones: {unlike:,} of {n:,} ({100 * unlike / n:.1f} %)"
        f" are beyond the detector's threshold, {expected:.2g} % were expected"
    )


def remarks(answers: Answers, rate: float = 0.01, n_validation: int | None = None) -> list[str]:
    """Lines on what is referred, and on images that are unlike the training images.

    Args:
      answers: The answers.
      rate: As for `unlike_remark`.
      n_validation: As for `unlike_remark`.
    """
    if not answers.is_judged:
        return []
    n, far = len(answers), int(answers.unlike.sum())
    lines = [
        f"{int(answers.refer.sum()):,} of {n:,} referred to a person: {int(answers.unsure.sum()):,}"
        f" {UNSURE}, {far:,} {UNLIKE}"
    ]
    remark = None if answers.distance is None else unlike_remark(far, n, rate, n_validation)
    return lines if remark is None else [*lines, remark]
