"""A sheet of images with titles, as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bloodjax.report import figures, labels


def render(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]]) -> bytes:
    """Renders rows of images with titles as a PNG file.

    Args:
      rows: uint8 RGB images, by row; all rows have the same length.
      titles: A title for each image. Its lines are shortened.
    """
    down, across = len(rows), len(rows[0])
    images = [image for row in rows for image in row]
    texts = [_short_lines(title) for row in titles for title in row]
    families = figures.font_families("".join(texts))
    figure = figures.png_figure(1.15 * across, 1.35 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, image, text in zip(grid.flat, images, texts, strict=True):
        axes.imshow(image, interpolation="nearest")
        title = figures.with_glyphs(text, families)
        axes.set_title(title, fontsize=6, pad=2, parse_math=False, family=families)
        axes.set_axis_off()
    return figures.to_png(figure)


def _short_lines(title: str) -> str:
    """The title with lines that fit above a small image."""
    return "\n".join(labels.shortened([line], 26)[0] if line else "" for line in title.split("\n"))
