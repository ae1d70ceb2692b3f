"""Plots as inline SVG in the colours of the page. The only module that imports matplotlib.

Text is rendered as outlines, so that a plot looks the same on every machine. A plot with a class
name that the font has no glyphs for, such as a Chinese one, has text instead, which a browser shows
in whatever font has them. The `aria-label` describes the plot for screen readers. Except
`image_sheet` and `range_test_png`, each function returns one self-contained `<svg>` element.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from bloodjax.cli.console import counted
from bloodjax.metrics import wilson_interval
from bloodjax.report import labels

# matplotlib has no CSS variables: it uses these placeholder colours, which `_svg` replaces.
INK, SOFT, LINE, CARD, ACCENT, GOOD = (f"#0000{i:02x}" for i in range(1, 7))
PAGE_COLOURS = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    CARD: "var(--card)",
    ACCENT: "var(--accent)",
    GOOD: "var(--good)",
}
FONT = "DejaVu Sans"  # Part of matplotlib.
_FONT_SIZE = 8.5
_COLUMN_INCHES = 0.62 * _FONT_SIZE / 72  # mean width of a letter
# A label of this width in inches fits into the sizes of the figures below.
_USUAL_LABEL = 0.9
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "bloodjax",  # Reproducible ids.
    "text.parse_math": False,  # A class name may contain a dollar sign.
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": _FONT_SIZE,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def training_curves(history: Sequence[Mapping], best_step: int | None = None) -> dict[str, str]:
    """Plots loss, accuracy and learning rate by epoch.

    Epochs are counted from 1 over all phases; dotted lines separate the phases.

    Args:
      history: Epoch lines of `metrics.jsonl`, in order. `validation` may be missing or None.
      best_step: Step of the best epoch, which is marked.

    Returns:
      SVG by "loss", "accuracy" and "learning_rate".
    """
    phases = [line["phase"] for line in history]
    last = len(history)
    plots = {}
    for quantity in ("loss", "accuracy", "learning_rate"):
        with _figure(3.9, 2.6) as figure:
            axes = figure.subplots()
            if quantity == "learning_rate":
                _plot_learning_rate(axes, history)
            else:
                best = next((i for i in range(last) if history[i]["step"] == best_step), None)
                _plot_train_and_validation(axes, history, quantity, best)
            for epoch in range(1, last):
                if phases[epoch] != phases[epoch - 1]:
                    axes.axvline(epoch + 0.5, color=SOFT, linewidth=1, linestyle=":")
            axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            name = quantity.replace("_", " ")
            plots[quantity] = _svg(figure, f"{name} over {counted(last, 'epoch')}")
    return plots


def range_test(found: Mapping) -> str:
    """Plots the loss over the learning rate of a range test, as SVG.

    Args:
      found: "phase", "rates", "losses", "smoothed", "highest" and "learning_rate", as in
        `training.lr_range_test.RangeTest`.
    """
    with _figure(3.9, 2.6) as figure:
        _plot_range_test(figure.subplots(), found, (SOFT, ACCENT, GOOD))
        return _svg(figure, f"loss over the learning rate in the range test of {found['phase']}")


def range_test_png(found: Mapping) -> bytes:
    """`range_test` as a PNG file."""
    figure, file = Figure(figsize=(5.2, 3.4), layout="constrained", dpi=120), io.BytesIO()
    _plot_range_test(figure.subplots(), found, ("grey", "tab:blue", "tab:green"))
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plot_range_test(axes: Axes, found: Mapping, colours: Sequence[str]) -> None:
    soft, accent, good = colours
    rates, smoothed = found["rates"], np.array(found["smoothed"])
    axes.plot(rates, found["losses"], ".", color=soft, markersize=3, label="loss of a batch")
    axes.plot(rates, smoothed, color=accent, label="smoothed")
    axes.axvline(found["highest"], color=soft, linewidth=1, linestyle=":", label="highest")
    axes.axvline(found["learning_rate"], color=good, linewidth=1, linestyle="--", label="chosen")
    # The last losses may be many times as high as the others.
    low, high = smoothed.min(), smoothed[: smoothed.argmin() + 1].max()
    margin = max(high - low, 0.1 * low)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.set_ylim(max(0, low - margin), high + margin)
    axes.legend(fontsize=7.5)


def _plot_learning_rate(axes: Axes, history: Sequence[Mapping]) -> None:
    _plot_series(axes, [line["learning_rate"] for line in history], "", ACCENT, "-")
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _plot_train_and_validation(
    axes: Axes, history: Sequence[Mapping], quantity: str, best: int | None
) -> None:
    train = [line["train"][quantity] for line in history]
    validation = [(line.get("validation") or {}).get(quantity, np.nan) for line in history]
    _plot_series(axes, train, "train", SOFT, "--")
    if np.isfinite(validation).any():
        _plot_series(axes, validation, "validation", ACCENT, "-")
        distorted = [(line.get("validation_distorted") or {}).get(quantity) for line in history]
        if None not in distorted:
            _plot_series(axes, distorted, "validation, distorted", GOOD, "-.")
        if best is not None:
            axes.plot(
                best + 1, validation[best], "o", color=ACCENT, label=f"best: epoch {best + 1}"
            )
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(fontsize=7.5)


def _plot_series(axes: Axes, values: Sequence[float], label: str, colour: str, dash: str) -> None:
    """Plots a line over epochs 1, 2, ...; a single epoch is a dot."""
    marker = "." if len(values) == 1 else None
    axes.plot(
        range(1, len(values) + 1), values, color=colour, linestyle=dash, marker=marker, label=label
    )


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
    with _figure(4.6, 4.2) as figure:
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
        below.yaxis.set_major_formatter(LogFormatter())
        for axis in (above.yaxis, below.xaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        figure.align_ylabels()
        return _svg(figure, "reliability diagram: accuracy against confidence")


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
    with _figure(6.4, 3.0) as figure:
        axes = figure.subplots()
        axes.fill_between(rank, *limits.T, color=ACCENT, alpha=0.2, linewidth=0, step="mid")
        axes.plot(rank, accuracy, drawstyle="steps-mid", color=ACCENT, linewidth=1.4)
        axes.axhline(overall, color=SOFT, linewidth=1, linestyle="--")
        axes.set(xlabel="groups, the lowest accuracy first", ylabel="accuracy")
        axes.set_xlim(0.5, len(groups) + 0.5)
        axes.set_ylim(top=1.01)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return _svg(figure, "accuracy of each group with its 95 % interval, in ascending order")


def _intervals(
    rows: Mapping[str, tuple[float | None, Sequence[float] | None]],
    quantity: str,
    label: str,
    overall: float | None = None,
) -> str:
    """Plots a share and its interval for each row; None is an empty row."""
    names = labels.shortened(list(rows))
    with _figure(4.6 + _extra_inches(names), 0.9 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        if overall is not None:
            axes.axvline(overall, color=SOFT, linewidth=1, linestyle="--")
        for row, (value, interval) in enumerate(rows.values()):
            if value is not None:
                axes.hlines(row, *interval, color=ACCENT, linewidth=1.6)
                axes.plot(value, row, "o", color=ACCENT, markersize=5, clip_on=False)
        axes.set_yticks(range(len(rows)), _stand_ins(names))
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=quantity)
        axes.set_xlim(right=1.005)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)  # More labels would overlap.
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return _svg(figure, label, axes.get_yticklabels(), names)


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
    with _figure(4.6, 3.0) as figure:
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
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return _svg(figure, "error on the answered images against the share that is answered")


def _upper_limits(coverage: Sequence[float], limits: Sequence[float]) -> list[float]:
    """The limits where at least half of the images are answered."""
    return [limit for share, limit in zip(coverage, limits, strict=True) if share >= 0.5]


def image_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]]) -> bytes:
    """Renders rows of images with titles as a PNG file.

    Args:
      rows: uint8 RGB images, by row; all rows have the same length.
      titles: A title for each image.
    """
    down, across = len(rows), len(rows[0])
    titles = [[_title(title) for title in row] for row in titles]
    families = _families("".join(title for row in titles for title in row))
    figure = Figure(figsize=(1.15 * across, 1.35 * down), layout="constrained", dpi=120)
    for axes, image, title in zip(
        figure.subplots(down, across, squeeze=False).flat,
        (image for row in rows for image in row),
        (title for row in titles for title in row),
        strict=True,
    ):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(
            _with_glyphs(title, families), fontsize=6, pad=2, parse_math=False, family=families
        )
        axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


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
    with _figure(2.2 + 0.62 * len(columns), 0.7 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        for (row, column), value in np.ndenumerate(np.asarray(values, float)):
            if np.isnan(value):
                continue
            cell = matplotlib.patches.Rectangle(
                (column - 0.48, row - 0.46), 0.96, 0.92, color=ACCENT, alpha=value, lw=0
            )
            axes.add_patch(cell)
            ink = CARD if value > 0.6 else INK
            axes.text(column, row, f"{value:.1%}", ha="center", va="center", color=ink)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=axis)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
        return _svg(figure, f"{quantity} by {axis}, a row each for {', '.join(rows)}")


def sweep_history(
    trials: Sequence[Mapping], measure: str, best: int | None, larger_is_better: bool
) -> str:
    """Plots the value of each trial by its number, and the best complete one so far.

    Args:
      trials: Trials with "number", "state", "value" and "epochs", as in `SweepContent`.
      measure: Name of the value.
      best: Number of the best trial.
      larger_is_better: Whether a larger value is better.
    """
    choose = max if larger_is_better else min
    complete = [trial for trial in trials if trial["state"] == "complete"]
    pruned = [trial for trial in trials if trial["state"] == "pruned" and trial["epochs"]]
    so_far = np.fmax if larger_is_better else np.fmin
    with _figure(6.4, 3.0) as figure:
        axes = figure.subplots()
        if pruned:
            reached = [choose(trial["epochs"].values()) for trial in pruned]
            axes.plot([t["number"] for t in pruned], reached, "x", color=SOFT, label="pruned")
        if complete:
            numbers = [trial["number"] for trial in complete]
            values = [trial["value"] for trial in complete]
            axes.step(numbers, so_far.accumulate(values), where="post", color=SOFT, linewidth=1)
            axes.plot(numbers, values, "o", color=ACCENT, markersize=4.5, label="complete")
        if best is not None:
            label = f"best: trial {best}"
            axes.plot(best, trials[best]["value"], "o", color=GOOD, markersize=6.5, label=label)
        if complete or pruned:
            axes.legend(fontsize=7.5)
        axes.set(xlabel="trial", ylabel=measure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _focus(axes, [trial["value"] for trial in complete], larger_is_better)
        return _svg(figure, f"{measure} of each trial, and the best so far")


def _focus(axes: Axes, values: Sequence[float], larger_is_better: bool) -> None:
    """Leaves out what is far worse than most values, which would flatten the others."""
    if len(values) < 4:
        return
    low, middle, high = np.percentile(values, [0, 50, 100])
    margin = 0.06 * (high - low)
    if larger_is_better and middle - low > 8 * (high - middle) > 0:
        axes.set_ylim(middle - 3 * (high - middle), high + (high - middle) / 4)
    elif not larger_is_better and high - middle > 8 * (middle - low) > 0:
        axes.set_ylim(low - (middle - low) / 4, middle + 3 * (middle - low))
    elif margin:
        axes.set_ylim(low - margin, high + margin)


def importances(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Plots the share of each key in the variance, with its 90 % interval where that is known.

    Args:
      shares: Key -> "share", and "low" and "high" of its interval; the largest first.
    """
    names = labels.shortened(list(shares))
    with _figure(4.6 + _extra_inches(names), 0.9 + 0.3 * len(shares)) as figure:
        axes = figure.subplots()
        values = [entry["share"] for entry in shares.values()]
        axes.barh(range(len(shares)), values, color=ACCENT, alpha=0.35, height=0.62)
        for row, entry in enumerate(shares.values()):
            if "low" in entry:
                axes.hlines(row, entry["low"], entry["high"], color=ACCENT, linewidth=1.6)
        axes.set_yticks(range(len(shares)), names)
        axes.set(ylim=(len(shares) - 0.4, -0.6), xlabel="share of the variance", xlim=(0, None))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return _svg(figure, "share of each key in the variance")


def sweep_slice(
    points: Sequence[tuple[float | int | str, float, int]],
    key: str,
    measure: str,
    *,
    log: bool,
    options: Sequence[str],
    best: int | None,
) -> str:
    """Plots the value of each trial by what it tried for one key.

    Args:
      points: What the trial tried, its value, and its number.
      key: The key.
      measure: Name of the value.
      log: Whether the key has a logarithmic scale.
      options: The key's options in order; () if it is a number.
      best: Number of the best trial, which is marked.
    """
    with _figure(3.4, 2.5) as figure:
        axes = figure.subplots()
        for tried, value, number in points:
            x = options.index(tried) if options else tried
            colour, size = (GOOD, 6) if number == best else (ACCENT, 4)
            axes.plot(x, value, "o", color=colour, markersize=size, zorder=2 + (number == best))
        if options:
            axes.set_xticks(range(len(options)), labels.shortened(list(options), 14))
            axes.set_xlim(-0.5, len(options) - 0.5)
        elif log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(LogFormatter())
            axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes.set(xlabel=key, ylabel=measure)
        return _svg(figure, f"{measure} by {key}")


def parallel_coordinates(
    trials: Sequence[tuple[Mapping[str, float | int | str], float, int]],
    keys: Sequence[str],
    measure: str,
    *,
    log_keys: Sequence[str],
    options: Mapping[str, Sequence[str]],
    best: int | None,
    larger_is_better: bool,
) -> str:
    """Plots each trial as a line over all keys, which ends at its value.

    Args:
      trials: What each trial tried by key, its value, and its number; at least two trials.
      keys: The keys from left to right.
      measure: Name of the value, the last axis, on which better is higher.
      log_keys: Keys with a logarithmic scale.
      options: Key with a few options -> their texts, in order.
      best: Number of the best trial, which is marked.
      larger_is_better: Whether a larger value is better.
    """
    values = np.array([value for _, value, _ in trials])
    order = np.argsort(np.argsort(-values if larger_is_better else values))
    columns, ends = [], []
    for key in keys:
        column = [tried[key] for tried, _, _ in trials]
        if key in options:
            places, last = [options[key].index(text) for text in column], len(options[key]) - 1
            columns.append(np.array(places) / last)
            ends.append(labels.shortened([options[key][0], options[key][-1]], 14))
            continue
        numbers = np.log(column) if key in log_keys else np.array(column, float)
        columns.append(_scaled(numbers))
        ends.append([f"{min(column):.3g}", f"{max(column):.3g}"])
    height = _scaled(values)
    columns.append(height if larger_is_better else 1 - height)
    worst, top = (np.min, np.max) if larger_is_better else (np.max, np.min)
    ends.append([f"{worst(values):.4g}", f"{top(values):.4g}"])
    lines = np.stack(columns, axis=1)
    with _figure(1.0 + 1.35 * len(ends), 3.2) as figure:
        axes = figure.subplots()
        for line, place, (_, _, number) in zip(lines, order, trials, strict=True):
            is_top = place < max(1, len(trials) // 4)
            colour = GOOD if number == best else ACCENT if is_top else SOFT
            width = 2.2 if number == best else 1.2
            strength = 1.0 if number == best else 0.8 if is_top else 0.35
            axes.plot(line, color=colour, linewidth=width, alpha=strength, zorder=3 - place * 1e-3)
        for i, (low, high) in enumerate(ends):
            axes.axvline(i, color=LINE, linewidth=1, zorder=1)
            axes.text(i, -0.04, low, ha="center", va="top", color=SOFT)
            axes.text(i, 1.04, high, ha="center", va="bottom", color=SOFT)
        names = [key.replace("phases.", "").replace(".", "\n") for key in keys]
        axes.set_xticks(range(len(ends)), [*names, measure.replace(" ", "\n", 1)])
        axes.tick_params(axis="x", length=0, labelcolor=INK, pad=16)
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.4, len(ends) - 0.6))
        axes.yaxis.set_visible(False)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        return _svg(figure, f"trials as lines over {', '.join(keys)} and {measure}")


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values as places from 0 to 1; the middle if all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the page's style; sizes are in inches."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _extra_inches(names: Sequence[str]) -> float:
    """Width of the longest name beyond what the sizes of the figures allow for."""
    widest = max(map(labels.columns, names), default=0)
    return max(0.0, widest * _COLUMN_INCHES - _USUAL_LABEL)


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    """Code points that an installed font has glyphs for; none if it cannot be used."""
    try:
        font = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):  # not installed, or a font of bitmaps
        return frozenset()


def _missing(text: str, families: Sequence[str] = (FONT,)) -> set[str]:
    """The characters of `text` without a glyph in any of the fonts."""
    rest = set(text) - {"\n"}
    for family in families:
        rest = {c for c in rest if ord(c) not in _glyphs(family)}
    return rest


def _families(text: str) -> list[str]:
    """Installed fonts that together have the most glyphs for `text`; the first is `FONT`."""
    families = [FONT]
    if _missing(text):
        plain = (
            f for f in font_manager.fontManager.ttflist if (f.weight, f.style) == (400, "normal")
        )
        for family in sorted({font.name for font in plain}):
            missing = _missing(text, families)
            if missing and _missing("".join(missing), [family]) != missing:
                families.append(family)
    return families


def _with_glyphs(text: str, families: Sequence[str]) -> str:
    """`text` with characters that no font has as escapes, such as \\u55dc."""
    missing = _missing(text, families)
    return "".join(ascii(c)[1:-1] if c in missing else c for c in text)


def _title(title: str) -> str:
    """A title above a small image, each line of which is short enough."""
    return "\n".join(labels.shortened([line], 26)[0] if line else "" for line in title.split("\n"))


def _stand_ins(names: Sequence[str]) -> list[str]:
    """The names with letters as wide in place of the characters that `FONT` lacks.

    The layout is made with them; `_svg` puts the names in their places.
    """
    missing = _missing("".join(names))
    return [
        "".join("M" * bool(labels.columns(c)) if c in missing else c for c in name)
        for name in names
    ]


def _svg(figure: Figure, label: str, texts: Sequence[Text] = (), names: Sequence[str] = ()) -> str:
    """Converts the figure to an `<svg>` element with the given aria-label.

    The page scales the element up to `--width`, at which its text would be larger than the page's.

    Args:
      figure: The figure.
      label: The aria-label.
      texts: Texts in the figure with the `_stand_ins` of names.
      names: The name of each of these.
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    as_text = bool(_missing("".join(names)))
    for i, text in enumerate(texts if as_text else ()):
        text.set_gid(f"name-{i}")
    with matplotlib.rc_context({"svg.fonttype": "none"} if as_text else {}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for i, name in enumerate(names if as_text else ()):
        body = re.sub(
            rf'(<g id="name-{i}">\s*<text[^>]*>)[^<]*',
            lambda match, name=name: match[1] + html.escape(name),
            body,
        )
    for placeholder, colour in PAGE_COLOURS.items():
        body = body.replace(placeholder, colour)
    # Ids must be unique among the plots of a page.
    prefix = "p" + hashlib.sha256((label + body).encode()).hexdigest()[:8]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    width, height = figure.get_size_inches() * 72
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="--width: {1.6 * width:.0f}px" '
        f'role="img" aria-label="{html.escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
