"""The page of the robustness benchmark."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bloodjax.report import evaluation_plots, html, numbers


def build(name: str, result: Mapping) -> str:
    """Builds a self-contained HTML page.

    Args:
      name: Name of the evaluated split.
      result: The content of `corruptions.json`.
    """
    rows = result["corruptions"]
    severities = sorted({severity for row in rows.values() for severity in row["balanced_error"]})
    values = [[row["balanced_error"].get(s, np.nan) for s in severities] for row in rows.values()]
    return html.render(
        "corruptions.html",
        name=name,
        result=result,
        mean=float(np.mean([row["mean_balanced_error"] for row in rows.values()])),
        heat_map=evaluation_plots.heat_map(
            values, list(rows), severities, "severity", "balanced error"
        ),
        own_size=result["image_size"] == result["baseline"]["image_size"],
        percent=numbers.percent,
        ratio=lambda value: "–" if value is None else f"{value:.3f}",
    )
