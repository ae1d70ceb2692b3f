"""What a report says of groups of images, such as patients or slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.cli.console import counted
from bloodjax.report import evaluation_plots

# Groups of which a figure shows the interval by name; of more it shows all in the order of rank.
_MAX_INTERVALS = 60
# Rows of the table that are open, and that are folded away below. More would make the page large.
_OPEN_ROWS = 20
_FOLDED_ROWS = 1000
_NAMED = 3
# Limits that round to the same thousandths are the same interval.
_SAME = 5e-4
# Fewer effective groups than this -> lowest and highest coverage in `benchmarks.group_intervals`.
_COVERAGE = {3: "53 to 91", 4: "70 to 91", 10: "79 to 94"}
_METHODS = {"majority": "Most frequent prediction", "mean_probability": "Mean probability"}


def section(metrics: Mapping) -> dict[str, object] | None:
    """The values of the section on groups; None if no group has several images.

    Args:
      metrics: Content of `metrics.json` of the headline split.
    """
    found = metrics.get("groups")
    if not found or not is_grouped(found):
        return None
    rows = list(found["per_group"].items())
    return {
        "found": found,
        "ci95": found["ci95"]["accuracy"],
        "differs": differs(metrics["ci95"]["accuracy"], found["ci95"]["accuracy"]),
        "few": few_remark(found),
        "trained_on": trained_on_remark(found),
        "worse": named(found["worse"]),
        "plot": _plot(found, metrics["accuracy"]),
        "together": [(title, found["together"][name]) for name, title in _METHODS.items()],
        "shares": found["shares"]["majority"],
        "rows": rows[:_OPEN_ROWS],
        "folded": rows[_OPEN_ROWS : _OPEN_ROWS + _FOLDED_ROWS],
        "left_out": max(0, len(rows) - _OPEN_ROWS - _FOLDED_ROWS),
    }


def is_grouped(found: Mapping) -> bool:
    """Whether some group has several images, given "groups" of `metrics.json`."""
    return found["images"] > found["n"]


def differs(images: Sequence[float], groups: Sequence[float] | None) -> bool:
    """Whether the intervals over resamples of images and of groups differ as they are shown."""
    return groups is None or bool(np.abs(np.subtract(images, groups)).max() > _SAME)


def few_remark(found: Mapping) -> str:
    """How little the interval says because there are few groups; "" if there are enough.

    Args:
      found: "groups" of `metrics.json`.
    """
    if found["n"] == 1:
        return "one group says nothing about other groups"
    if not found["few"]:
        return ""
    n, effective = found["n"], found["effective"]
    few = counted(n, "group")
    if effective < n - 0.5:
        few += f" of different sizes, which say as much as {effective:.1f} equal ones,"
    return (
        f"{few} are too few for an interval that holds in 95 of 100 cases (docs/groups.md): in "
        f"simulations it held in {_coverage(effective)} of 100"
    )


def _coverage(effective: float) -> str:
    """In how many of 100 simulations the interval of so many groups held the true accuracy."""
    return next(held for groups, held in _COVERAGE.items() if effective < groups)


def trained_on_remark(found: Mapping) -> str:
    """One line if groups are among those that were trained on; "" if none are.

    Args:
      found: "groups" of `metrics.json`.
    """
    trained = found.get("trained_on")
    if trained is None:
        return ""
    groups, others = trained["groups"], trained["others"]
    line = (
        f"{counted(len(groups), 'group')} ({named(groups)}; {counted(trained['images'], 'image')}) "
        f"{'has' if len(groups) == 1 else 'have'} training images too, by the key, so the accuracy "
        "may be too high"
    )
    if others is None:
        return line
    limits = others["ci95"]["accuracy"]
    interval = f" ({limits[0]:.4f} to {limits[1]:.4f})" if limits else ""
    return (
        f"{line}; on the other {counted(others['n'], 'image')} {others['accuracy']:.4f}{interval}"
    )


def named(groups: Sequence[str]) -> str:
    """The first names of groups, and how many more there are."""
    more = f" and {len(groups) - _NAMED:,} more" if len(groups) > _NAMED else ""
    return ", ".join(groups[:_NAMED]) + more


def _plot(found: Mapping, overall: float) -> str:
    rows = {
        name: (row["accuracy"], row["accuracy_ci95"]) for name, row in found["per_group"].items()
    }
    if len(rows) <= _MAX_INTERVALS:
        return evaluation_plots.group_accuracies(rows, overall)
    return evaluation_plots.ranked_accuracies(list(rows.values()), overall)
