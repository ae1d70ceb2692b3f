"""The report of a run: accuracy, uncertainty, calibration, errors and what to do next."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.cli.console import counted
from bloodjax.metrics import wilson_interval
from bloodjax.profiling import breakdown
from bloodjax.report import (
    confidence,
    evaluation_plots,
    groups,
    html,
    labels,
    next_steps,
    numbers,
    training_plots,
)
from bloodjax.report.pictures import Pictures
from bloodjax.report.run_content import Picture, RunContent

# Bytes of the page, and of its images to begin with; fewer if the rest of the page is large.
MAX_BYTES = 5_000_000
PICTURE_BYTES = 3_500_000
_SMALL = 64  # Pixels of an image of which there are many.
# Rows beyond these would make a table or a figure too long to read, or the page too large.
_MAX_MATRIX = 40
_MAX_INTERVALS = 60
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
# Section -> its title in the list of sections.
_SECTIONS = {
    "summary": "Summary",
    "next": "Next steps",
    "training": "Training",
    "confusion": "Confusion matrix",
    "classes": "Classes",
    "calibration": "Calibration",
    "referral": "When not to answer",
    "unlike": "Unlike images",
    "mistakes": "Errors",
    "examples": "Typical and doubtful cells",
    "labels": "Labels to look at again",
    "groups": "Groups",
    "sets": "All metrics",
    "data": "Data",
    "time": "Profile",
    "config": "Reproducibility",
}


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A picture with the `src` of its image and of its overlay, "" if it has none."""

    picture: Picture
    src: str
    overlay: str
    unsure: bool


def build(content: RunContent) -> str:
    """Builds the report as a self-contained HTML page of at most 5 MB."""
    figures = _figures(content)
    budget = PICTURE_BYTES
    while True:
        page = html.render("report.html", **figures, **_pictures(content, Pictures(budget)))
        excess = len(page.encode()) - MAX_BYTES
        if excess <= 0 or budget == 0:
            return page
        budget = max(0, budget - excess)


def _figures(content: RunContent) -> dict[str, object]:
    """The values of the template, without its images."""
    evaluations = content.evaluations
    measured = {
        split: _baseline(accuracy, evaluations[split]["n"])
        for split, accuracy in content.baselines.items()
        if split in evaluations
    }
    split = next(iter(evaluations), None)
    values: dict[str, object] = {}
    if split:
        metrics = evaluations[split]
        values = {
            "headline": _headline(split, metrics, measured.get(split)),
            "confusion": _confusion(content, metrics),
            "calibration": confidence.calibration(metrics, SCORES),
            "referral": confidence.referral(evaluations, metrics),
            "rejection": confidence.rejection(evaluations),
            "recalls_shown": _MAX_INTERVALS,
            "recalls_left_out": len(metrics["classes"]) > _MAX_INTERVALS,
            "groups": groups.section(metrics),
            "next_steps": next_steps.collect(content),
        }
    present = {
        "next": split,
        "referral": values.get("referral"),
        "unlike": values.get("rejection"),
        "examples": content.examples,
        "labels": content.labels,
        "groups": values.get("groups"),
        "time": content.profile,
        **dict.fromkeys(
            ("summary", "confusion", "classes", "calibration", "mistakes", "sets"), split
        ),
    }
    sections = [(id, title) for id, title in _SECTIONS.items() if present.get(id, True)]
    return {
        "headline": None,
        "calibration": None,
        "referral": None,
        "groups": None,
        **values,
        "name": content.name,
        "sections": sections,
        "section_ids": [id for id, _ in sections],
        "evaluations": evaluations,
        "baselines": measured,
        "scores": SCORES,
        "range_tests": range_tests(content),
        "curves": training_plots.training_curves(content.history, content.best_step)
        if content.history
        else {},
        "phases": phases(content.history),
        "labels": content.labels,
        "audit": content.audit,
        "audit_findings": AUDIT_FINDINGS,
        "audit_page": content.audit_page,
        "site_page": content.site_page,
        "counts": content.counts,
        "statement": content.statement,
        "class_weights": content.class_weights,
        "config": json.dumps(content.config, indent=2),
        "versions": content.versions,
        "timings": {name: numbers.duration(seconds) for name, seconds in content.timings.items()},
        "profile": {
            phase: {**entry, "facts": breakdown.facts(entry)}
            for phase, entry in content.profile.items()
        },
        "percent": numbers.percent,
        "interval": numbers.interval,
        "number": numbers.number,
        "points": numbers.points,
    }


def _pictures(content: RunContent, pictures: Pictures) -> dict[str, object]:
    """The images of the template, the most important first, until their budget is spent."""
    threshold = _threshold(content)

    def show(found: Sequence[Picture], side: int) -> list[_Shown]:
        shown = []
        for picture in found:
            if src := pictures.add(picture.image, side):
                overlay = picture.overlay
                heat = "" if overlay is None else pictures.add(overlay, side)
                shown.append(_Shown(picture, src, heat, picture.confidence < threshold))
        return shown

    mistakes = show(content.mistakes, 96)
    suspects = []
    for suspect in content.labels.suspects if content.labels else ():
        if src := pictures.add(suspect.image):
            suspects.append((src, suspect.finding))
    examples = []
    for name, both in content.examples.items():
        found = {"Typical": both.typical, "Doubtful": both.doubtful}
        shown = [(title, show(images, _SMALL)) for title, images in found.items() if images]
        if any(images for _, images in shown):
            examples.append((name, shown))
    cells = []
    if content.evaluations:
        metrics = next(iter(content.evaluations.values()))
        places = {name: i for i, name in enumerate(metrics["classes"])}
        for (label, predicted), found in content.cells.items():
            if shown := show(found, _SMALL):
                row, column = places[label], places[predicted]
                cells.append(
                    {
                        "id": _cell_id(row, column),
                        "label": label,
                        "predicted": predicted,
                        "count": metrics["confusion_matrix"][row][column],
                        "shown": shown,
                    }
                )
    linked = {cell["id"] for cell in cells}
    every = [*mistakes, *(one for _, both in examples for _, shown in both for one in shown)]
    return {
        "mistakes": mistakes,
        "suspects": suspects,
        "examples": examples,
        "cells": cells,
        "linked": linked,
        "pictures_left_out": pictures.left_out,
        "has_overlays": any(one.overlay for one in every),
    }


def _threshold(content: RunContent) -> float:
    """Confidence below which images of the headline split are referred; 0 if none are."""
    metrics = next(iter(content.evaluations.values()), {})
    point = (metrics.get("selective") or {}).get("operating_point")
    return point["threshold"] if point else 0.0


def _headline(name: str, metrics: Mapping, baseline: Mapping | None) -> dict[str, object]:
    """The values for the headline split."""
    expected = metrics["ci95"]["accuracy"]
    before = (metrics.get("calibration") or {}).get("reliability_before")
    return {
        "name": name,
        "metrics": metrics,
        "expected": expected,
        "baseline": baseline,
        # Significantly better if the two intervals do not overlap.
        "beats_baseline": baseline and expected[0] > baseline["ci95"][1],
        "confidence": _mean_confidence(metrics),
        "confused_with": _confused_with(metrics),
        "recalls": evaluation_plots.class_recalls(_lowest_recalls(metrics["per_class"])),
        "reliability": evaluation_plots.reliability_diagram(metrics["reliability"], before),
    }


def _baseline(accuracy: float, n: int) -> dict[str, object]:
    return {"accuracy": accuracy, "ci95": wilson_interval(round(accuracy * n), n)}


def _lowest_recalls(per_class: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The classes that a figure has room for: those of the lowest recall, in label order."""
    if len(per_class) <= _MAX_INTERVALS:
        return dict(per_class)
    measured = [name for name, scores in per_class.items() if scores["recall"] is not None]
    kept = sorted(measured, key=lambda name: per_class[name]["recall"])[:_MAX_INTERVALS]
    return {name: scores for name, scores in per_class.items() if name in set(kept)}


def _confusion(content: RunContent, metrics: Mapping) -> dict[str, object]:
    """The table of the confusion matrix: the classes of the most mistakes if there are many."""
    counts, classes = np.array(metrics["confusion_matrix"]), metrics["classes"]
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    kept = np.sort(np.argsort(-mistakes, kind="stable")[:_MAX_MATRIX]).tolist()
    short = labels.shortened(classes)
    totals = counts.sum(axis=1)
    rows = []
    for row in kept:
        cells = []
        for column in kept:
            count = int(counts[row, column])
            share = count / max(1, int(totals[row]))
            has_images = (classes[row], classes[column]) in content.cells
            cells.append(
                {
                    "count": count,
                    "share": share,
                    "strength": np.cbrt(share),  # The cube root makes rare confusions visible.
                    "right": row == column,
                    "id": _cell_id(row, column) if has_images else "",
                }
            )
        rows.append({"name": classes[row], "short": short[row], "cells": cells})
    total = counted(counts.sum(), "image")
    return {
        "title": f"confusion matrix: {np.trace(counts)} of {total} on the diagonal",
        "classes": [{"name": classes[i], "short": short[i]} for i in kept],
        "rows": rows,
        "left_out": len(classes) - len(kept),
    }


def _cell_id(row: int, column: int) -> str:
    return f"cell-{row}-{column}"


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


def range_tests(content: RunContent) -> dict[str, dict[str, object]]:
    """Phase -> its learning rate range test, with a plot."""
    return {
        phase: {"learning_rate": found["learning_rate"], "plot": training_plots.range_test(found)}
        for phase, found in content.range_tests.items()
    }


def phases(history: Sequence[Mapping]) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each phase; epochs are counted from 1 over all phases."""
    phases, first = [], 1
    for name, lines in itertools.groupby(history, key=lambda line: line["phase"]):
        last = first + len(list(lines)) - 1
        phases.append((name, first, last))
        first = last + 1
    return phases
