"""The report of a run: accuracy, uncertainty, calibration and errors."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax.data.images import encode_png
from bloodjax.metrics import wilson_interval
from bloodjax.profiling import breakdown
from bloodjax.report import html, plots

# Key in `audit.json` -> description, in the order of the page.
AUDIT_FINDINGS = {
    "junk": "images that do not show a cell like the others, or repeat one image many times",
    "exact_duplicates": "groups of identical images",
    "near_duplicates": "groups of nearly identical images",
    "label_conflicts": "groups in which one image has several labels",
    "leakage": "groups with images in several splits",
    "dropped": "images left out of this run",
}
# Key in `metrics.json` -> (title, whether it is a share of 1), for the table of all splits.
SCORES = {
    "accuracy": ("Accuracy", True),
    "balanced_accuracy": ("Balanced accuracy", True),
    "precision_macro": ("Precision, mean of classes", True),
    "recall_macro": ("Recall, mean of classes", True),
    "f1_macro": ("F1, mean of classes", True),
    "auc_ovr": ("Area under the ROC curve, one class against the rest", False),
    "precision_at_50": ("Precision at threshold 0.5", True),
    "recall_at_50": ("Recall at threshold 0.5", True),
    "nll": ("Negative log-likelihood (nats)", False),
    "ece": ("Expected calibration error", True),
    "brier": ("Brier score (0 to 2)", False),
}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
      image: uint8 RGB image.
      name: Name of the image in its dataset.
      true: Name of its class.
      predicted: Name of the predicted class.
      confidence: Probability of the predicted class, 0..1.
    """

    image: UInt8[np.ndarray, "h w 3"]
    name: str
    true: str
    predicted: str
    confidence: float


def most_confident_mistakes(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int = 24
) -> Int[np.ndarray, " m"]:
    """Indices of up to `k` misclassified images, by descending confidence."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order[:k]]


def build(
    *,
    name: str,
    config: Mapping[str, object],
    history: Sequence[Mapping[str, object]],
    evaluations: Mapping[str, Mapping[str, object]],
    best_step: int | None = None,
    baselines: Mapping[str, float] | None = None,
    mistakes: Sequence[Mistake] = (),
    audit: Mapping[str, int] | None = None,
    audit_page: str = "../audit/index.html",
    counts: Mapping[str, Mapping[str, int]] | None = None,
    statement: Sequence[str] = (),
    class_weights: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    timings: Mapping[str, float] | None = None,
    profile: Mapping[str, Mapping[str, object]] | None = None,
) -> str:
    """Builds the report as a self-contained HTML page. It names what is missing.

    Args:
      name: Name of the run.
      config: Config of the run, ready for JSON.
      history: Epoch lines of `metrics.jsonl`, in order.
      evaluations: Split ("test") -> content of its `metrics.json`. The first split is the headline.
      best_step: Step of the evaluated weights.
      baselines: Split -> accuracy of the colour-histogram baseline.
      mistakes: Misclassified images of the headline split, by descending confidence.
      audit: Counts by key of `audit.json` (numbers of groups for duplicates, conflicts and
        leakage), `n`, `dropped`, and `cleaned`: 1 if leaking images were left out, else 0.
      audit_page: Link to the page of the audit.
      counts: Split -> class -> number of images.
      statement: Lines on the sources, the classes and what was left out, see `data.statement`.
      class_weights: Class -> weight in the loss.
      versions: Name of a package, or "device" -> version.
      timings: Activity -> seconds.
      profile: Phase -> its entry in `profile.json`.
    """
    measured = {
        split: _baseline(accuracy, evaluations[split]["n"])
        for split, accuracy in (baselines or {}).items()
        if split in evaluations
    }
    headline = next(iter(evaluations), None)
    return html.render(
        "report.html",
        name=name,
        headline=headline and _headline(headline, evaluations[headline], measured.get(headline)),
        evaluations=evaluations,
        baselines=measured,
        scores=SCORES,
        curves=plots.training_curves(history, best_step) if history else {},
        phases=_phases(history),
        errors=[(html.data_uri(encode_png(error.image)), error) for error in mistakes],
        audit=audit,
        audit_findings=AUDIT_FINDINGS,
        audit_page=audit_page,
        counts=counts or {},
        statement=statement,
        class_weights=class_weights or {},
        config=json.dumps(config, indent=2),
        versions=versions or {},
        timings={name: _duration(seconds) for name, seconds in (timings or {}).items()},
        profile={
            phase: {**entry, "facts": breakdown.facts(entry)}
            for phase, entry in (profile or {}).items()
        },
        percent=_percent,
        interval=_interval,
        number=_format_number,
        points=_points,
    )


def _headline(name: str, metrics: Mapping, baseline: Mapping | None) -> dict[str, object]:
    """The values for the headline split."""
    n, expected = metrics["n"], metrics["ci95"]["accuracy"]
    if metrics["accuracy"] == 1:  # The bootstrap interval has no width here.
        expected = wilson_interval(n, n)
    return {
        "name": name,
        "metrics": metrics,
        "expected": expected,
        "baseline": baseline,
        # Significantly better if the two intervals do not overlap.
        "beats_baseline": baseline and expected[0] > baseline["ci95"][1],
        "confidence": _mean_confidence(metrics),
        "confused_with": _confused_with(metrics),
        "confusion": plots.confusion_matrix(metrics["confusion_matrix"], metrics["classes"]),
        "recalls": plots.class_recalls(metrics["per_class"]),
        "reliability": plots.reliability_diagram(metrics["reliability"]),
    }


def _baseline(accuracy: float, n: int) -> dict[str, object]:
    return {"accuracy": accuracy, "ci95": wilson_interval(round(accuracy * n), n)}


def _mean_confidence(metrics: Mapping) -> float:
    bins = metrics["reliability"]
    pairs = zip(bins["count"], bins["confidence"], strict=True)
    return sum(count * mean for count, mean in pairs if count) / metrics["n"]


def _confused_with(metrics: Mapping) -> dict[str, tuple[str, int] | None]:
    """Class -> (most frequent wrong prediction, number of images); None without errors."""
    confusion = np.array(metrics["confusion_matrix"])
    np.fill_diagonal(confusion, 0)
    return {
        true: (metrics["classes"][row.argmax()], int(row.max())) if row.any() else None
        for true, row in zip(metrics["classes"], confusion, strict=True)
    }


def _phases(history: Sequence[Mapping]) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each phase; epochs are counted from 1 over all phases."""
    phases, first = [], 1
    for name, lines in itertools.groupby(history, key=lambda line: line["phase"]):
        last = first + len(list(lines)) - 1
        phases.append((name, first, last))
        first = last + 1
    return phases


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _interval(ci95: Sequence[float] | None, is_share: bool = True) -> str:
    if ci95 is None:
        return ""
    low, high = (f"{100 * v:.1f}" if is_share else f"{v:.3f}" for v in ci95)
    return f"{low}–{high}"


def _format_number(value: float | None, is_share: bool) -> str:
    return _percent(value) if is_share or value is None else f"{value:.3f}"


def _points(difference: float) -> str:
    """0.0123 -> "+1.2", in percentage points."""
    return f"{100 * difference:+.1f}"


def _duration(seconds: float) -> str:
    """3,725 s -> "1 h 2 min"; 65 s -> "1 min 5 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
