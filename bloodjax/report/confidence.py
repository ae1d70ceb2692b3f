"""What a report says of confidences: calibration, referral, images unlike the training ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bloodjax.metrics import wilson_interval
from bloodjax.report import evaluation_plots, numbers


def calibration(
    metrics: Mapping, scores: Mapping[str, tuple[str, bool]]
) -> dict[str, object] | None:
    """What was fitted, and the scores before and after it; None for a run without calibration.

    Args:
      metrics: Content of `metrics.json` of the headline split.
      scores: Key in `metrics.json` -> (title, whether it is a share of 1).
    """
    fitted = metrics.get("calibration")
    if not fitted:
        return None
    method = fitted.get("method", "none")
    if method == "none":
        text = "The probabilities are those of the network: no calibration improved them."
    else:
        temperature = fitted.get("temperature")
        at = f", temperature {temperature:.3f}" if temperature is not None else ""
        text = f"The probabilities were calibrated on the validation images ({method} scaling{at})."
    rows = []
    for key in ("ece", "nll"):
        before = fitted.get(f"{key}_before")
        if before is not None:
            title, is_share = scores[key]
            values = (numbers.number(value, is_share) for value in (before, metrics[key]))
            rows.append((title, *values))
    return {
        "text": text,
        "rows": rows,
        "ece_before": fitted.get("ece_before") if method != "none" else None,
        "has_before": fitted.get("reliability_before") is not None,
    }


def referral(evaluations: Mapping[str, Mapping], metrics: Mapping) -> dict[str, object] | None:
    """The risk-coverage curve of the headline split, and the operating point on every split.

    Args:
      evaluations: Split -> content of its `metrics.json`.
      metrics: That of the headline split.

    Returns:
      The values of the section; None if there is nothing to show.
    """
    selective = metrics.get("selective")
    if not selective:
        return None
    rows = []
    for split, result in evaluations.items():
        other = result.get("selective") or {}
        if not other:
            continue
        point = other.get("operating_point")
        rows.append(
            {
                "split": split,
                "referred": numbers.percent(1 - point["coverage"]) if point else "–",
                "error": numbers.percent(point["error"]) if point else "–",
                "interval": numbers.interval(point.get("error_ci95")) if point else "",
                "all": numbers.percent(1 - result["accuracy"]),
                "aurc": "–" if other.get("aurc") is None else f"{other['aurc']:.5f}",
            }
        )
    point, curve = selective.get("operating_point"), selective.get("curve")
    return {
        "point": point,
        "plot": _risk_coverage(curve, point) if curve else None,
        "band": bool(curve and curve.get("error_ci95")),
        "rows": rows,
    }


def _risk_coverage(curve: Mapping, point: Mapping | None) -> str:
    limits = curve.get("error_ci95")
    return evaluation_plots.risk_coverage(
        curve["coverage"],
        curve["error"],
        interval=tuple(np.transpose(limits).tolist()) if limits else None,
        point=(point["coverage"], point["error"]) if point and point["coverage"] else None,
        target=point.get("target_error") if point else None,
    )


def rejection(evaluations: Mapping[str, Mapping]) -> dict[str, object] | None:
    """The detector, and the share of each split that it rejects; None for a run without one.

    Args:
      evaluations: Split -> content of its `metrics.json`.
    """
    found = {
        split: result["rejection"]
        for split, result in evaluations.items()
        if result.get("rejection")
    }
    if not found:
        return None
    first = next(iter(found.values()))
    rows = []
    for split, rejection in found.items():
        n, share = evaluations[split]["n"], rejection.get("rejected")
        limits = None if share is None else wilson_interval(round(share * n), n)
        rows.append(
            {
                "split": split,
                "n": n,
                "rejected": numbers.percent(share),
                "interval": numbers.interval(limits),
            }
        )
    return {"method": first.get("method"), "threshold": first.get("threshold"), "rows": rows}
