"""Plots of a sweep: its trials, and what their values depend on. Each is one `<svg>` element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.report import figures, labels
from bloodjax.report.figures import ACCENT, GOOD, INK, LINE, SOFT


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
    with figures.page_figure(6.4, 3.0) as figure:
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
        figures.integer_ticks(axes.xaxis)
        _focus(axes, [trial["value"] for trial in complete], larger_is_better)
        return figures.to_svg(figure, f"{measure} of each trial, and the best so far")


def _focus(axes: figures.Axes, values: Sequence[float], larger_is_better: bool) -> None:
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
    with figures.row_figure(names, "share of the variance") as (figure, axes):
        values = [entry["share"] for entry in shares.values()]
        axes.barh(range(len(shares)), values, color=ACCENT, alpha=0.35, height=0.62)
        for row, entry in enumerate(shares.values()):
            if "low" in entry:
                axes.hlines(row, entry["low"], entry["high"], color=ACCENT, linewidth=1.6)
        axes.set_xlim(0, None)
        return figures.to_svg(figure, "share of each key in the variance", names)


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
    with figures.page_figure(3.4, 2.5) as figure:
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
            figures.decimal_ticks(axes.xaxis)
        axes.set(xlabel=key, ylabel=measure)
        return figures.to_svg(figure, f"{measure} by {key}")


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
    places, ends = [], []
    for key in keys:
        tried = [trial[key] for trial, _, _ in trials]
        if key in options:
            column, texts = _places_of_options(tried, options[key])
        else:
            column, texts = _places_of_numbers(tried, key in log_keys)
        places.append(column)
        ends.append(texts)
    heights = _scaled(values)
    places.append(heights if larger_is_better else 1 - heights)
    lowest, highest = f"{values.min():.4g}", f"{values.max():.4g}"
    ends.append((lowest, highest) if larger_is_better else (highest, lowest))
    ranks = np.argsort(np.argsort(-values if larger_is_better else values))
    with figures.page_figure(1.0 + 1.35 * len(ends), 3.2) as figure:
        axes = figure.subplots()
        for line, rank, (_, _, number) in zip(np.stack(places, 1), ranks, trials, strict=True):
            if number == best:
                style = {"color": GOOD, "linewidth": 2.2, "alpha": 1.0}
            elif rank < max(1, len(trials) // 4):
                style = {"color": ACCENT, "linewidth": 1.2, "alpha": 0.8}
            else:
                style = {"color": SOFT, "linewidth": 1.2, "alpha": 0.35}
            axes.plot(line, zorder=3 - rank * 1e-3, **style)
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
        return figures.to_svg(figure, f"trials as lines over {', '.join(keys)} and {measure}")


# Places on an axis from 0 to 1, and the texts at its lower and its upper end.
_Axis = tuple[np.ndarray, tuple[str, str]]


def _places_of_options(tried: Sequence[str], options: Sequence[str]) -> _Axis:
    places = np.array([options.index(text) for text in tried]) / (len(options) - 1)
    low, high = labels.shortened([options[0], options[-1]], 14)
    return places, (low, high)


def _places_of_numbers(tried: Sequence[float | int], log: bool) -> _Axis:
    places = _scaled(np.log(tried) if log else np.array(tried, float))
    return places, (f"{min(tried):.3g}", f"{max(tried):.3g}")


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values as places from 0 to 1; the middle if all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
