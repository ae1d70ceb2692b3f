"""The page of a sweep: its history, what mattered, its trials, and the best config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bloodjax.report import html, numbers, sweep_plots

# Complete trials for each parameter below which the page warns of its importances.
_TRIALS_PER_PARAMETER = 10
# Metrics on test: key, title, and whether it is a share of 1.
_METRICS = (
    ("accuracy", "Accuracy", True),
    ("balanced_accuracy", "Balanced accuracy", True),
    ("f1_macro", "Macro F1", True),
    ("auc_ovr", "AUC", True),
    ("nll", "Log loss", False),
)
_STATES = {
    "complete": ("good-text", "complete"),
    "pruned": ("soft", "pruned"),
    "failed": ("bad-text", "failed"),
    "running": ("soft", "running or stopped"),
}


@dataclasses.dataclass(frozen=True)
class SweepContent:
    """What the page shows.

    Attributes:
      name: Name of the sweep.
      measure: What is compared, such as "validation loss".
      larger_is_better: Whether a larger value of it is better.
      network: Name of the network.
      space: Config key -> its distribution, as a space file writes it.
      log_keys: Keys with a logarithmic scale.
      options: Key with a few options -> their texts, in order.
      trials: The trials by number: "number", "state", "value" (None unless complete), "values" by
        key, "epochs" (epoch -> value), "seconds" and "remark".
      best: Number of the best trial, or None.
      own: Number of the complete trial with the config's own values, or None.
      importances: Key -> "share", and "low" and "high" of its interval where known.
      min_complete: Complete trials that importances need.
      tests: Evaluations on test, from `test.json`.
      best_file: Path of the best trial's config file.
      workdir: Path of the sweep's folder.
      has_test: Whether there is a test split.
    """

    name: str
    measure: str
    larger_is_better: bool
    network: str
    space: Mapping[str, str]
    log_keys: Sequence[str]
    options: Mapping[str, Sequence[str]]
    trials: Sequence[Mapping[str, Any]]
    best: int | None
    own: int | None
    importances: Mapping[str, Mapping[str, float]]
    min_complete: int
    tests: Sequence[Mapping[str, Any]]
    best_file: str
    workdir: str
    has_test: bool


def build(content: SweepContent) -> str:
    """Builds the page, a self-contained HTML file."""
    trials = content.trials
    complete = [trial for trial in trials if trial["state"] == "complete"]
    counts = {state: sum(t["state"] == state for t in trials) for state in _STATES}
    few = len(complete) < _TRIALS_PER_PARAMETER * len(content.space)
    ranges = any("low" in entry for entry in content.importances.values())
    return html.render(
        "sweep.html",
        content=content,
        complete=len(complete),
        counts=counts,
        best=None if content.best is None else trials[content.best],
        own=None if content.own is None else trials[content.own],
        gain=_gain(content),
        history=sweep_plots.sweep_history(
            trials, content.measure, content.best, content.larger_is_better
        )
        if any(t["epochs"] for t in trials)
        else "",
        importance=sweep_plots.importances(content.importances) if content.importances else "",
        few=few,
        ranges=ranges,
        slices=[
            (
                key,
                sweep_plots.sweep_slice(
                    [(t["values"][key], t["value"], t["number"]) for t in complete],
                    key,
                    content.measure,
                    log=key in content.log_keys,
                    options=content.options.get(key, ()),
                    best=content.best,
                ),
            )
            for key in content.space
        ]
        if complete
        else [],
        parallel=sweep_plots.parallel_coordinates(
            [(t["values"], t["value"], t["number"]) for t in complete],
            list(content.space),
            content.measure,
            log_keys=content.log_keys,
            options=content.options,
            best=content.best,
            larger_is_better=content.larger_is_better,
        )
        if len(complete) > 1
        else "",
        rows=_rows(content),
        remarks=any(trial["remark"] for trial in trials),
        test_titles=[title for _, title, _ in _shown_metrics(content.tests)],
        test_rows=list(_test_rows(content.tests)),
        number=format_value,
        duration=duration,
    )


def _shown_metrics(tests: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """The metrics that all evaluations have; which they have depends on the kind of labels."""
    return [each for each in _METRICS if all(each[0] in entry["best"] for entry in tests)]


def _test_rows(tests: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of the table of evaluations on test."""
    for entry in tests:
        for role, title in (("best", "best"), ("own", "the config's own values")):
            if role not in entry:
                continue
            result = entry[role]
            cells = [
                numbers.percent(result[key]) if is_share else f"{result[key]:.4f}"
                for key, _, is_share in _shown_metrics(tests)
            ]
            if interval := result.get("ci95"):
                cells[0] += " (" + " – ".join(map(numbers.percent, interval)) + ")"
            name = f"{result['trial']} ({title})"
            yield {"name": name, "date": entry["date"], "n": result["n"], "cells": cells}


def _gain(content: SweepContent) -> float | None:
    """By how much the best trial is better than the config's own values."""
    if content.own is None or content.best is None:
        return None
    best, own = (content.trials[number]["value"] for number in (content.best, content.own))
    return best - own if content.larger_is_better else own - best


def _rows(content: SweepContent) -> list[dict[str, Any]]:
    """The rows of the table: complete trials, the best first, then the others by number."""
    sign = -1 if content.larger_is_better else 1

    def place(trial: Mapping[str, Any]) -> tuple:
        value = trial["value"]
        return (value is None, 0.0 if value is None else sign * value, trial["number"])

    return [
        {
            **trial,
            "kind": _STATES[trial["state"]][0],
            "word": _STATES[trial["state"]][1],
            "shown": [
                format_value(trial["values"][key]) if key in trial["values"] else "–"
                for key in content.space
            ],
            "is_best": trial["number"] == content.best,
            "is_own": trial["number"] == content.own,
        }
        for trial in sorted(content.trials, key=place)
    ]


def format_value(value: Any) -> str:
    """A value with four digits, if it is a number that is no integer."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """A duration as text: 75.0 -> "1 min 15 s"."""
    return "–" if seconds is None else numbers.duration(seconds)
