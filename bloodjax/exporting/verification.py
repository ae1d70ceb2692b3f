"""Whether an exported classifier answers as the trained one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.exporting.bundle import Bundle

Run = Callable[[np.ndarray], np.ndarray]

# Sizes of the batches, and how many batches of each.
BATCHES = {1: 64, 7: 128}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference of two classifiers' probabilities.

    Attributes:
      largest: In 0..1.
      images: Number of images that were compared.
      split: Split of the run that they are from.
    """

    largest: float
    images: int
    split: str


def compare(run: Run, bundle: Bundle, expected: Float[np.ndarray, "n classes"]) -> Difference:
    """Compares an exported classifier with the trained one, in batches of 1 and of 7.

    Args:
      run: Computes class probabilities of uint8 images with the exported classifier.
      bundle: The trained classifier.
      expected: Its class probabilities of the first images of `bundle.images`.
    """
    largest, compared = 0.0, 0
    for size, batches in BATCHES.items():
        count = min(batches * size, len(expected) // size * size)
        for start in range(0, count, size):
            images = np.asarray(bundle.images[start : start + size])
            difference = np.abs(run(images) - expected[start : start + size])
            # A value that is not a number is the largest difference.
            largest = max(largest, float(np.nan_to_num(difference.max(), nan=np.inf)))
        compared = max(compared, count)
    return Difference(largest, compared, bundle.checked_on)


def expected(bundle: Bundle, calibrated: bool) -> Float[np.ndarray, "n classes"]:
    """Class probabilities of the first images of `bundle.images`, as `predict` computes them."""
    count = max(size * batches for size, batches in BATCHES.items())
    images = bundle.images[:count]
    return bundle.classifier.predict(images, bundle.tta, calibrated=calibrated)


def check(difference: Difference, allowed: float, what: str) -> None:
    """Refuses an export that differs too much.

    Raises:
      UserError: The largest difference is above `allowed`.
    """
    if difference.largest > allowed:
        raise UserError(
            f"{what}: its probabilities differ from the run's by {difference.largest:.1e} on "
            f"{difference.images} {difference.split} images, expected at most {allowed:.0e}; "
            "nothing was written"
        )


def accuracy(run: Run, images: Images, labels: Int[np.ndarray, " n"], batch: int = 64) -> float:
    """The share of images that are classified as labelled."""
    correct = 0
    for start in range(0, len(labels), batch):
        answers = run(np.asarray(images[start : start + batch])).argmax(axis=-1)
        correct += int((answers == labels[start : start + batch]).sum())
    return correct / len(labels)
