"""Numbers and times as the pages show them."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float | None) -> str:
    """A share of 1 as text: 0.123 -> "12.3 %", with a blank that does not break; None -> "–"."""
    return "–" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def interval(ci95: Sequence[float] | None, is_share: bool = True) -> str:
    """An interval as text: in percent without the sign if it is of a share; "" for None."""
    if ci95 is None:
        return ""
    low, high = (f"{100 * v:.1f}" if is_share else f"{v:.3f}" for v in ci95)
    return f"{low}–{high}"


def number(value: float | None, is_share: bool) -> str:
    """A figure as text: in percent if it is a share."""
    return percent(value) if is_share or value is None else f"{value:.3f}"


def points(difference: float) -> str:
    """0.0123 -> "+1.2", in percentage points."""
    return f"{100 * difference:+.1f}"


def duration(seconds: float) -> str:
    """3,725 s -> "1 h 2 min"; 65 s -> "1 min 5 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
