"""The report of a run whose images have any number of labels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from bloodjax.report import evaluation_plots, html, numbers, run_page, training_plots
from bloodjax.report.pictures import Pictures
from bloodjax.report.run_content import Picture, RunContent

_SMALL = 64  # Pixels of an image of which there are many.
# Key in `metrics.json` -> (title, whether it is a share of 1), for the table of all splits.
SCORES = {
    "auc_ovr": ("Area under the ROC curve, mean of labels", False),
    "map": ("Average precision, mean of labels", False),
    "accuracy": ("Accuracy of a label at threshold 0.5", True),
    "subset_accuracy": ("All labels right at threshold 0.5", True),
    "balanced_accuracy": ("Balanced accuracy, mean of labels", True),
    "f1_macro": ("F1 at threshold 0.5, mean of labels", True),
    "f1_micro": ("F1 at threshold 0.5, all labels pooled", True),
    "precision_at_50": ("Precision at threshold 0.5, pooled", True),
    "recall_at_50": ("Recall at threshold 0.5, pooled", True),
    "nll": ("Binary cross-entropy (nats)", False),
    "ece": ("Expected calibration error", True),
    "brier": ("Brier score (0 to 1)", False),
}
# Most labels of a figure; more would be too long to read.
_MAX_LABELS = 60


@dataclasses.dataclass(frozen=True)
class _Shown:
    picture: Picture
    src: str


def build(content: RunContent) -> str:
    """Builds the report as a self-contained HTML page; the images take at most 3.5 MB of it."""
    pictures = Pictures(run_page.PICTURE_BYTES)
    split = next(iter(content.evaluations), None)
    return html.render(
        "multi_label.html",
        name=content.name,
        headline=_headline(split, content.evaluations[split]) if split else None,
        evaluations=content.evaluations,
        scores=SCORES,
        examples=_examples(content, pictures),
        curves=training_plots.training_curves(content.history, content.best_step)
        if content.history
        else {},
        phases=run_page.phases(content.history),
        range_tests=run_page.range_tests(content),
        statement=content.statement,
        counts=content.counts,
        class_weights=content.class_weights,
        audit=content.audit,
        audit_page=content.audit_page,
        audit_findings=run_page.AUDIT_FINDINGS,
        config=json.dumps(content.config, indent=2),
        versions=content.versions,
        timings={name: numbers.duration(value) for name, value in content.timings.items()},
        pictures_left_out=pictures.left_out,
        percent=numbers.percent,
        interval=numbers.interval,
        number=numbers.number,
    )


def _headline(split: str, metrics: Mapping) -> dict[str, object]:
    """The figures and plots of the first evaluated split."""
    fitted = metrics.get("thresholds")
    per_class = metrics["per_class"]
    calibration = metrics.get("calibration")
    before = calibration and calibration.get("reliability_before")
    return {
        "name": split,
        "metrics": metrics,
        "fitted": fitted,
        "areas": evaluation_plots.label_areas(dict(list(per_class.items())[:_MAX_LABELS])),
        "left_out": max(0, len(per_class) - _MAX_LABELS),
        "reliability": evaluation_plots.reliability_diagram(metrics["reliability"], before),
        "calibration": calibration,
    }


def _examples(content: RunContent, pictures: Pictures) -> list[tuple[str, list]]:
    """Label -> (title, images) of those that fit into the page."""
    found = []
    for name, examples in content.examples.items():
        groups = {
            "Found": examples.found,
            "Missed, or least certain": examples.missed,
            "Without it, but probable": examples.mistaken,
        }
        rows = []
        for title, each in groups.items():
            shown = [
                _Shown(picture, src)
                for picture in each
                if (src := pictures.add(picture.image, _SMALL))
            ]
            if shown:
                rows.append((title, shown))
        if rows:
            found.append((name, rows))
    return found
