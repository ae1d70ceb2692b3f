"""When a run refers an image to a person: the threshold of confidence, and `referral.json`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics import conformal, selective

FILE = "referral.json"


@dataclasses.dataclass(frozen=True)
class Referral:
    """Thresholds on calibrated probabilities, chosen on the validation split.

    Attributes:
      target_error: Share of wrong answers among the answered images that was asked for.
      threshold: Confidence from which on images are answered; above 1 if no threshold met the
        target.
      n: Number of validation images.
      alpha: Share of conformal sets that may lack the true class; 0 for no sets.
      set_threshold: Lowest probability of a class in a conformal set.
    """

    target_error: float
    threshold: float
    n: int
    alpha: float = 0.0
    set_threshold: float = 0.0

    @property
    def answers_nothing(self) -> bool:
        """Whether no threshold met the target, so that every image is referred."""
        return self.threshold > 1

    def sets(
        self,
        probabilities: Float[np.ndarray, "n classes"],
        possible: Bool[np.ndarray, " classes"] | None = None,
    ) -> Bool[np.ndarray, "n classes"] | None:
        """Whether each class is in each image's conformal set; None if there are no sets.

        Args:
          probabilities: Class probabilities.
          possible: Whether each class can occur; None for all.
        """
        return conformal.sets(probabilities, self.set_threshold, possible) if self.alpha else None


def fit(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    target_error: float,
    alpha: float = 0.0,
) -> Referral:
    """Chooses the thresholds.

    Args:
      probabilities: Calibrated class probabilities of the validation images.
      labels: True class indices.
      target_error: Largest share of wrong answers among the answered images.
      alpha: Share of conformal sets that may lack the true class; 0 for no sets.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    return Referral(
        target_error,
        selective.choose_threshold(confidence, correct, target_error),
        len(labels),
        alpha,
        conformal.threshold(probabilities, labels, alpha) if alpha else 0.0,
    )


def write(workdir: pathlib.Path, referral: Referral) -> None:
    """Writes `referral.json`."""
    atomic_write(workdir / FILE, json.dumps(dataclasses.asdict(referral), indent=2) + "\n")


def load(workdir: pathlib.Path) -> Referral | None:
    """The thresholds in `referral.json`, or None if the run has no such file.

    Raises:
      UserError: The file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    return read_json(path, "the thresholds of a run", _from_json)


def _from_json(content: Any) -> Referral:
    found = Referral(**content)
    numbers = dataclasses.astuple(found)
    if not all(isinstance(value, (int, float)) and 0 <= value < np.inf for value in numbers):
        raise ValueError(f"a threshold or share is no number of at least 0: {numbers}")
    return found
