"""Plots of an evaluation, each as one `<svg>` element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.metrics import wilson_interval
from bloodjax.report import figures, labels
from bloodjax.report.figures import ACCENT, CARD, GOOD, INK, SOFT


def reliability_diagram(
    bins: Mapping[str, Sequence], before: Mapping[str, Sequence] | None = None
) -> str:
    """Plots accuracy by confidence with 95 % intervals, above a histogram of confidence.

    Args:
      bins: Result of `bloodjax.metrics.reliability`.
      before: The same before calibration, which is plotted without intervals.
    """
    filled, confidence, accuracy = _filled(bins)
    count = np.array(bins["count"])[filled]
    limits = [
        wilson_interval(round(share * n), int(n)) for share, n in zip(accuracy, count, strict=True)
    ]
    edges = np.linspace(0, 1, len(bins["count"]) + 1)
    with figures.page_figure(4.6, 4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1, label="perfect")
        if before is not None:
            _, uncalibrated, correct = _filled(before)
            above.plot(
                uncalibrated, correct, "s:", color=SOFT, markersize=4, label="before calibration"
            )
        above.vlines(confidence, *np.transpose(limits), color=ACCENT, linewidth=1.2)
        label = "model" if before is None else "after calibration"
        above.plot(confidence, accuracy, "o", color=ACCENT, markersize=4.5, label=label)
        above.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        above.legend(loc="upper left")
        if before is not None:
            counts = np.where(np.array(before["count"]) > 0, before["count"], np.nan)
            below.stairs(counts, edges, color=SOFT, linestyle=":", baseline=None)
        below.bar(
            edges[:-1], bins["count"], np.diff(edges), align="edge", color=ACCENT, edgecolor=CARD
        )
        below.set(xlabel="confidence", ylabel="images", yscale="log", ylim=(0.7, None))
        figures.decimal_ticks(below.yaxis, minor=False)
        figures.percent_ticks(above.yaxis, below.xaxis)
        figure.align_ylabels()
        return figures.to_svg(figure, "reliability diagram: accuracy against confidence")


def _filled(bins: Mapping[str, Sequence]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Indices of the bins with images, and their mean confidence and accuracy."""
    filled = [i for i, count in enumerate(bins["count"]) if count]
    confidence, accuracy = (
        np.array([bins[key][i] for i in filled]) for key in ("confidence", "accuracy")
    )
    return filled, confidence, accuracy


def class_recalls(per_class: Mapping[str, Mapping]) -> str:
    """Plots the recall of each class with its 95 % interval; classes without images are empty."""
    rows = {name: (scores["recall"], scores["recall_ci95"]) for name, scores in per_class.items()}
    return _intervals(rows, "recall", "recall of each class with its 95 % interval")


def label_areas(per_class: Mapping[str, Mapping]) -> str:
    """Plots the area under each label's ROC curve with its 95 % interval; 50 % is chance."""
    rows = {name: (scores["auc"], scores["auc_ci95"]) for name, scores in per_class.items()}
    label = "area under the ROC curve of each label with its 95 % interval"
    return _intervals(rows, "area under the ROC curve", label, 0.5)


def group_accuracies(groups: Mapping[str, tuple[float, Sequence[float]]], overall: float) -> str:
    """Plots the accuracy of each group with its 95 % interval, and the accuracy of all images.

    Args:
      groups: Name of each group -> its accuracy and the limits of the interval.
      overall: Accuracy of all images.
    """
    label = "accuracy of each group with its 95 % interval"
    return _intervals(groups, "accuracy", label, overall)


def ranked_accuracies(groups: Sequence[tuple[float, Sequence[float]]], overall: float) -> str:
    """Plots the accuracies of many groups with their 95 % intervals, in the given order.

    Args:
      groups: Accuracy of each group, and the limits of its interval.
      overall: Accuracy of all images.
    """
    accuracy, limits = np.array([row[0] for row in groups]), np.array([row[1] for row in groups])
    rank = np.arange(1, len(groups) + 1)
    with figures.page_figure(6.4, 3.0) as figure:
        axes = figure.subplots()
        axes.fill_between(rank, *limits.T, color=ACCENT, alpha=0.2, linewidth=0, step="mid")
        axes.plot(rank, accuracy, drawstyle="steps-mid", color=ACCENT, linewidth=1.4)
        axes.axhline(overall, color=SOFT, linewidth=1, linestyle="--")
        axes.set(xlabel="groups, the lowest accuracy first", ylabel="accuracy")
        axes.set_xlim(0.5, len(groups) + 0.5)
        axes.set_ylim(top=1.01)
        figures.percent_ticks(axes.yaxis)
        label = "accuracy of each group with its 95 % interval, in ascending order"
        return figures.to_svg(figure, label)


def _intervals(
    rows: Mapping[str, tuple[float | None, Sequence[float] | None]],
    quantity: str,
    label: str,
    overall: float | None = None,
) -> str:
    """Plots a share and its interval for each row; None is an empty row."""
    names = labels.shortened(list(rows))
    with figures.row_figure(names, quantity) as (figure, axes):
        if overall is not None:
            axes.axvline(overall, color=SOFT, linewidth=1, linestyle="--")
        for row, (value, interval) in enumerate(rows.values()):
            if value is not None:
                axes.hlines(row, *interval, color=ACCENT, linewidth=1.6)
                axes.plot(value, row, "o", color=ACCENT, markersize=5, clip_on=False)
        axes.set_xlim(right=1.005)
        axes.spines["left"].set_visible(False)
        return figures.to_svg(figure, label, names)


def risk_coverage(
    coverage: Sequence[float],
    error: Sequence[float],
    interval: tuple[Sequence[float], Sequence[float]] | None = None,
    point: tuple[float, float] | None = None,
    target: float | None = None,
) -> str:
    """Plots the error on the images that are answered against their share.

    Args:
      coverage: Share of the images that are answered, 0..1.
      error: Share of wrong answers among them, 0..1.
      interval: Lower and upper limits of the error's 95 % interval.
      point: Coverage and error at the operating point.
      target: The error that was asked for.
    """
    with figures.page_figure(4.6, 3.0) as figure:
        axes = figure.subplots()
        if interval is not None:
            axes.fill_between(coverage, *interval, color=ACCENT, alpha=0.15, linewidth=0)
        axes.plot(coverage, error, color=ACCENT)
        if target is not None:
            axes.axhline(target, color=SOFT, linewidth=1, linestyle="--", label="target")
        if point is not None:
            axes.plot(*point, "o", color=GOOD, markersize=6, label="operating point", clip_on=False)
        if target is not None or point is not None:
            axes.legend(loc="upper left")
        axes.set(xlabel="images answered", ylabel="error on these", xlim=(0, 1.01))
        # The interval of a few images is so wide that the curve beside it would be flat.
        limits = [*error, *(() if interval is None else _upper_limits(coverage, interval[1]))]
        axes.set_ylim(0, 1.1 * max(limits) or 1)
        figures.percent_ticks(axes.xaxis, axes.yaxis)
        label = "error on the answered images against the share that is answered"
        return figures.to_svg(figure, label)


def _upper_limits(coverage: Sequence[float], limits: Sequence[float]) -> list[float]:
    """The limits where at least half of the images are answered."""
    return [limit for share, limit in zip(coverage, limits, strict=True) if share >= 0.5]


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    axis: str,
    quantity: str,
) -> str:
    """Plots a table of shares; a larger share is a darker cell, NaN an empty one.

    Args:
      values: Shares [row][column], 0..1.
      rows: Names of the rows from top to bottom.
      columns: Names of the columns from left to right.
      axis: Label of the columns' axis.
      quantity: Name of the values, for the aria-label.
    """
    with figures.page_figure(2.2 + 0.62 * len(columns), 0.7 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        for (row, column), value in np.ndenumerate(np.asarray(values, float)):
            if np.isnan(value):
                continue
            axes.bar(column, 0.92, 0.96, row - 0.46, color=ACCENT, alpha=value, linewidth=0)
            ink = CARD if value > 0.6 else INK
            axes.text(column, row, f"{value:.1%}", ha="center", va="center", color=ink)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=axis)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
        return figures.to_svg(figure, f"{quantity} by {axis}, a row each for {', '.join(rows)}")
