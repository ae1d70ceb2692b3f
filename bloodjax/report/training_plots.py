"""Plots of a run's training: curves over epochs, and learning-rate range tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.cli.console import counted
from bloodjax.report import figures
from bloodjax.report.figures import ACCENT, GOOD, SOFT


def training_curves(history: Sequence[Mapping], best_step: int | None = None) -> dict[str, str]:
    """Plots loss, accuracy and learning rate by epoch.

    Epochs are counted from 1 over all phases; dotted lines separate the phases.

    Args:
      history: Epoch lines of `metrics.jsonl`, in order. `validation` may be missing or None.
      best_step: Step of the best epoch, which is marked.

    Returns:
      SVG by "loss", "accuracy" and "learning_rate".
    """
    epochs = len(history)
    best = next((i for i, line in enumerate(history) if line["step"] == best_step), None)
    phases = [line["phase"] for line in history]
    new_phases = [i for i in range(1, epochs) if phases[i] != phases[i - 1]]
    plots = {}
    for quantity in ("loss", "accuracy", "learning_rate"):
        with figures.page_figure(3.9, 2.6) as figure:
            axes = figure.subplots()
            if quantity == "learning_rate":
                _plot_learning_rate(axes, history)
            else:
                _plot_train_and_validation(axes, history, quantity, best)
            for i in new_phases:
                axes.axvline(i + 0.5, color=SOFT, linewidth=1, linestyle=":")
            axes.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
            figures.integer_ticks(axes.xaxis)
            name = quantity.replace("_", " ")
            plots[quantity] = figures.to_svg(figure, f"{name} over {counted(epochs, 'epoch')}")
    return plots


def _plot_learning_rate(axes: figures.Axes, history: Sequence[Mapping]) -> None:
    _plot_series(axes, [line["learning_rate"] for line in history], "", ACCENT, "-")
    axes.set_yscale("log", nonpositive="mask")
    figures.decimal_ticks(axes.yaxis)


def _plot_train_and_validation(
    axes: figures.Axes, history: Sequence[Mapping], quantity: str, best: int | None
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
            label = f"best: epoch {best + 1}"
            axes.plot(best + 1, validation[best], "o", color=ACCENT, label=label)
    if quantity == "accuracy":
        figures.percent_ticks(axes.yaxis)
    axes.legend(fontsize=7.5)


def _plot_series(
    axes: figures.Axes, values: Sequence[float], label: str, colour: str, dash: str
) -> None:
    """Plots a line over epochs 1, 2, ...; a single epoch is a dot."""
    marker = "." if len(values) == 1 else None
    epochs = range(1, len(values) + 1)
    axes.plot(epochs, values, color=colour, linestyle=dash, marker=marker, label=label)


def range_test(found: Mapping) -> str:
    """Plots the loss over the learning rate of a range test, as SVG.

    Args:
      found: "phase", "rates", "losses", "smoothed", "highest" and "learning_rate", as in
        `training.lr_range_test.RangeTest`.
    """
    with figures.page_figure(3.9, 2.6) as figure:
        _plot_range_test(figure.subplots(), found, (SOFT, ACCENT, GOOD))
        label = f"loss over the learning rate in the range test of {found['phase']}"
        return figures.to_svg(figure, label)


def range_test_png(found: Mapping) -> bytes:
    """`range_test` as a PNG file."""
    figure = figures.png_figure(5.2, 3.4)
    _plot_range_test(figure.subplots(), found, ("grey", "tab:blue", "tab:green"))
    return figures.to_png(figure)


def _plot_range_test(axes: figures.Axes, found: Mapping, colours: Sequence[str]) -> None:
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
