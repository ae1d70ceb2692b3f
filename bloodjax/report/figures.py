"""Figures as inline SVG in the colours of the page, or as PNG. Only this module imports matplotlib.

It does so when a figure is drawn: the import takes a second, and most commands draw none.

Text is rendered as outlines, so that a figure looks the same on every machine. A figure with a name
that the font has no glyphs for, such as a Chinese one, has text instead, which a browser shows in
whatever font has them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bloodjax.report import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# matplotlib has no CSS variables: it uses these placeholder colours, which `to_svg` replaces.
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
_USUAL_LABEL = 0.9  # Width in inches of the labels that `row_figure` has room for.
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


@contextlib.contextmanager
def page_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in the page's style, of this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def row_figure(names: Sequence[str], quantity: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with a named row for each of several shares.

    The rows are at y = 0, 1, ... from top to bottom. x is a share, 0..1.

    Args:
      names: Names of the rows. `to_svg` needs them, too.
      quantity: Name of the shares.
    """
    widest = max(map(labels.columns, names), default=0)
    extra = max(0.0, widest * _COLUMN_INCHES - _USUAL_LABEL)
    with page_figure(4.6 + extra, 0.9 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        axes.set_yticks(range(len(names)), _stand_ins(names))
        if _missing("".join(names)):
            for i, text in enumerate(axes.get_yticklabels()):
                text.set_gid(f"name-{i}")
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=quantity)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.locator_params(axis="x", nbins=5)  # More labels would overlap.
        percent_ticks(axes.xaxis)
        yield figure, axes


def png_figure(width: float, height: float) -> Figure:
    """An empty figure for `to_png` in matplotlib's own style, of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def percent_ticks(*axes: Axis) -> None:
    """Labels the ticks of these axes, which are shares of 1, as percentages."""
    from matplotlib.ticker import PercentFormatter

    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def integer_ticks(axis: Axis) -> None:
    """Puts ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def decimal_ticks(axis: Axis, minor: bool = True) -> None:
    """Labels the values of a logarithmic axis as 0.01 and not as a power of ten.

    Args:
      axis: The axis.
      minor: Whether to label values between the powers of ten where there is room.
    """
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    if minor:
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, with the same bytes every time."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Figure, label: str, names: Sequence[str] = ()) -> str:
    """Converts a `page_figure` or `row_figure` to one self-contained `<svg>` element.

    The page scales the element up to `--width`, at which its text would be larger than the page's.

    Args:
      figure: The figure.
      label: The aria-label, which describes the figure for screen readers.
      names: Names of the rows, if there are any.
    """
    import matplotlib

    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    as_text = bool(_missing("".join(names)))
    with matplotlib.rc_context({"svg.fonttype": "none"} if as_text else {}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    if as_text:
        body = _with_names(body, names)
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


def _with_names(body: str, names: Sequence[str]) -> str:
    """The SVG with the names in the places of their `_stand_ins`."""
    for i, name in enumerate(names):
        body = re.sub(
            rf'(<g id="name-{i}">\s*<text[^>]*>)[^<]*',
            lambda match, name=name: match[1] + html.escape(name),
            body,
        )
    return body


def _stand_ins(names: Sequence[str]) -> list[str]:
    """The names, where letters of the same width replace the characters that `FONT` lacks.

    matplotlib computes the layout with them. `to_svg` puts the names in their places.
    """
    missing = _missing("".join(names))
    return [
        "".join("M" * bool(labels.columns(c)) if c in missing else c for c in name)
        for name in names
    ]


def font_families(text: str) -> list[str]:
    """Installed fonts that together have the most glyphs for `text`; the first is `FONT`."""
    from matplotlib import font_manager

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


def with_glyphs(text: str, families: Sequence[str]) -> str:
    """`text` with characters that no font has as escapes, such as \\u55dc."""
    missing = _missing(text, families)
    return "".join(ascii(c)[1:-1] if c in missing else c for c in text)


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    """Code points that an installed font has glyphs for; none if it cannot be used."""
    from matplotlib import font_manager

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
