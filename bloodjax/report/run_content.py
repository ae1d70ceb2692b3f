"""What the report of a run shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and how it was classified.

    Attributes:
      image: uint8 RGB image.
      name: Name of the image in its dataset.
      label: Name of its class.
      predicted: Name of the predicted class.
      confidence: Probability of the predicted class, 0..1.
      overlay: The image under the heat map of the predicted class, or None.
    """

    image: UInt8[np.ndarray, "h w 3"]
    name: str
    label: str
    predicted: str
    confidence: float
    overlay: UInt8[np.ndarray, "h w 3"] | None = None


@dataclasses.dataclass(frozen=True)
class ClassExamples:
    """Images of a class: `typical` ones are predicted as it with the highest probability, and
    `doubtful` ones with the lowest.
    """

    typical: Sequence[Picture]
    doubtful: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class LabelExamples:
    """Images of one label, of images with any number of them.

    `found` have it and have the highest probabilities of it, `missed` have it and the lowest, and
    `mistaken` do not have it and have the highest. `Picture.confidence` is the label's probability.
    """

    found: Sequence[Picture]
    missed: Sequence[Picture]
    mistaken: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Finding:
    """An image whose label is likely wrong.

    Attributes:
      name: Name of the image in its dataset.
      split: Split of the image.
      label: Its class by the label.
      suggested: The most probable other class.
      label_probability: Probability of the label, 0..1.
      suggested_probability: Probability of the suggested class, 0..1.
      score: The second probability minus the first, 0..1: larger is more suspicious.
      judged_by: What made the prediction.
    """

    name: str
    split: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    score: float
    judged_by: str


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A finding with its image.

    Attributes:
      finding: The image's label and the predicted one.
      image: uint8 RGB image.
    """

    finding: Finding
    image: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class LabelReview:
    """Labels to look at again.

    Attributes:
      judged: (split, number of its images, number of suspects, what judged them) of each split.
      suspects: The most suspicious images.
    """

    judged: Sequence[tuple[str, int, int, str]]
    suspects: Sequence[Suspect]

    @property
    def images(self) -> int:
        """Number of images whose labels were judged."""
        return sum(n for _, n, _, _ in self.judged)

    @property
    def found(self) -> int:
        """Number of suspects."""
        return sum(found for _, _, found, _ in self.judged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContent:
    """Content of a report. The page names what is missing.

    Attributes:
      name: Name of the run.
      config: Config of the run, ready for JSON.
      history: Epoch lines of `metrics.jsonl`, in order.
      evaluations: Split ("test") -> content of its `metrics.json`. The first split is the headline.
      best_step: Step of the evaluated weights.
      baselines: Split -> accuracy of the colour-histogram baseline.
      mistakes: Misclassified images of the headline split, by descending confidence.
      cells: (label, predicted) -> images of this cell of the confusion matrix.
      examples: Class -> images of it.
      labels: Labels to look at again, or None if they were not judged.
      audit: Counts by key of `audit.json` (numbers of groups for duplicates, conflicts and
        leakage), `n`, `dropped`, and `cleaned`: 1 if leaking images were left out, else 0.
      audit_page: Link to the page of the audit.
      site_page: Link to the page of the site that the run was adapted to; "" if to none.
      counts: Split -> class -> number of images.
      statement: Lines on the sources, the classes and what was left out, see `data.statement`.
      class_weights: Class -> weight in the loss.
      versions: Name of a package, or "device" -> version.
      timings: Activity -> seconds.
      profile: Phase -> its entry in `profile.json`.
      range_tests: Phase -> its learning-rate range test; see `training_plots.range_test`.
    """

    name: str
    config: Mapping[str, object]
    history: Sequence[Mapping[str, object]]
    evaluations: Mapping[str, Mapping[str, object]]
    best_step: int | None = None
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mistakes: Sequence[Picture] = ()
    cells: Mapping[tuple[str, str], Sequence[Picture]] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, ClassExamples | LabelExamples] = dataclasses.field(default_factory=dict)
    labels: LabelReview | None = None
    audit: Mapping[str, int] | None = None
    audit_page: str = "../audit/index.html"
    site_page: str = ""
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    statement: Sequence[str] = ()
    class_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    profile: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    range_tests: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
