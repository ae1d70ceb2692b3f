"""What the tests of plots show, and what they look for in the SVG."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from bloodjax import metrics

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("basophil", "<b>&", "a $x$ y")
# Class names that a plot must not take for formulas, markup or line breaks.
ODD_NAMES = ("$x^2$ & $y", "嗜中性粒细胞", "🩸", "é", "\ud83d", "a\nb\x1b[31m", " ", "<b>嗜")
LONG_NAME = "immature granulocyte, myelocyte (neutrophilic) with vacuoles and granules " * 3
_RATES = np.geomspace(1e-6, 1, 100)
_LOSSES = tuple((2 - _RATES**0.2 + 5 * _RATES).tolist())
RANGE_TEST = {
    "phase": "head",
    "rates": tuple(_RATES.tolist()),
    "losses": _LOSSES,
    "smoothed": _LOSSES,
    "highest": 0.05,
    "learning_rate": 0.005,
}


def history(phases="hhfff", validation=True):
    """Lines of `metrics.jsonl`, a letter for the phase of each epoch."""
    return [
        {
            "event": "epoch",
            "step": 10 * epoch,
            "epoch": epoch,
            "phase": phase,
            "train": {"loss": 1 / epoch, "accuracy": 1 - 1 / (2 * epoch)},
            "validation": {"loss": 1.1 / epoch, "accuracy": 0.9} if validation else None,
            "learning_rate": 1e-3 / epoch,
        }
        for epoch, phase in enumerate(phases, start=1)
    ]


def evaluation():
    """The metrics of five images, of which none is of the last class."""
    probabilities = np.eye(3)[[0, 0, 1, 1, 1]] * 0.7 + 0.1
    return metrics.evaluate(probabilities, np.array([0, 1, 1, 1, 0]), CLASSES, bootstrap=2)


def texts(svg: str) -> list[str]:
    """All texts; the SVG has each as a comment next to its outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL)]


def _styles(svg: str) -> list[str]:
    return [element.get("style", "") for element in ET.fromstring(svg).iter()]


def dotted_lines(svg: str) -> int:
    """Number of dotted lines, recognised by their dash pattern."""
    return sum(bool(re.search(r"stroke-dasharray: 1,1\.65", style)) for style in _styles(svg))


def dots(svg: str) -> int:
    """Number of accent-coloured markers."""
    return sum(
        element.tag == f"{SVG}use" and "fill: var(--accent)" in element.get("style", "")
        for element in ET.fromstring(svg).iter()
    )
