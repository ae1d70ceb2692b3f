"""Runs whose images have any number of labels: what they cannot do, and lines on their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from bloodjax.config import Config
from bloodjax.data.options import MULTI_LABEL
from bloodjax.errors import UserError
from bloodjax.evaluation.answers import LabelAnswers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.metrics import multi_label as metrics_lib


def refuse(config: Config, what: str) -> None:
    """Refuses what needs one class for each image.

    Args:
      config: Config of the run.
      what: The command or flag that needs it, such as "adapt".

    Raises:
      UserError: The run's images can have several labels.
    """
    if config.data.task == MULTI_LABEL:
        raise UserError(
            f"{what}: the run's images have any number of labels (config.data.task is "
            f"{MULTI_LABEL}), expected a run with one class for each image"
        )


def judged(
    model: Classifier | Ensemble, answers: LabelAnswers, labels: Int[np.ndarray, "n labels"]
) -> dict[str, dict]:
    """The entry "thresholds" of `metrics.json`: metrics at the fitted thresholds.

    Args:
      model: The model that gave the answers.
      answers: Answers to at least one image.
      labels: 1 for each label that an image has and 0 for each other.
    """
    if not model.thresholds:
        return {}
    return {
        "thresholds": metrics_lib.at_thresholds(
            answers.probabilities, labels, model.classes, np.array(model.thresholds)
        )
    }


def lines(name: str, result: Mapping[str, Any]) -> list[str]:
    """What to log on the evaluation of a split, given the content of its `metrics.json`."""
    found = [summary(name, result)]
    if fitted := result.get("thresholds"):
        found.append(
            f"{name}: at the thresholds fitted on validation: F1 {_text(fitted['f1_macro'])} (mean "
            f"of labels), {_text(fitted['f1_micro'])} (pooled), all labels right "
            f"{100 * fitted['subset_accuracy']:.1f} % of images"
        )
    undefined = [label for label, row in result["per_class"].items() if row["auc"] is None]
    if undefined:
        found.append(
            f"{name}: no area under the ROC curve of {', '.join(undefined[:5])}"
            + (f" and {len(undefined) - 5} more" if len(undefined) > 5 else "")
            + ", which no image has or all have; the means are of the others"
        )
    return found


def summary(name: str, result: Mapping[str, Any]) -> str:
    """One line on the evaluation of a split."""
    limits = result["ci95"]["auc_ovr"]
    line = f"{name}: mean AUC {_text(result['auc_ovr'])}"
    if limits is not None:
        line += f" (95 % interval {limits[0]:.4f} to {limits[1]:.4f}, n = {result['n']:,})"
    line += (
        f", mean average precision {_text(result['map'])}, accuracy of a label "
        f"{result['accuracy']:.4f}"
    )
    for other, scores in result.get("beside", {}).items():
        line += f"; {other}: mean AUC {_text(scores.get('auc'))}"
    return line


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
