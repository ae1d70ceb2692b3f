"""Tests of bloodjax/report/plots.py, which parse the SVG."""

import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from bloodjax import metrics
from bloodjax.report import labels, plots

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("basophil", "<b>&", "a $x$ y")


def _history(phases="hhfff", validation=True):
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


def _evaluation():
    probabilities = np.eye(3)[[0, 0, 1, 1, 1]] * 0.7 + 0.1
    return metrics.evaluate(probabilities, np.array([0, 1, 1, 1, 0]), CLASSES, bootstrap=2)


def _every_plot() -> dict[str, str]:
    evaluation = _evaluation()
    return {
        **plots.training_curves(_history(), best_step=40),
        "risk": plots.risk_coverage(
            [0.5, 1.0], [0.0, 0.1], ([0.0, 0.05], [0.2, 0.3]), point=(0.5, 0.0), target=0.005
        ),
        "groups": plots.group_accuracies({"<a>": (0.5, (0.1, 0.9)), "b": (1.0, (0.8, 1.0))}, 0.6),
        "reliability": plots.reliability_diagram(evaluation["reliability"]),
        "recalls": plots.class_recalls(evaluation["per_class"]),
    }


def _texts(svg: str) -> list[str]:
    """All texts; the SVG has each as a comment next to its outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL)]


def _styles(svg: str) -> list[str]:
    return [element.get("style", "") for element in ET.fromstring(svg).iter()]


def _dotted(svg: str) -> int:
    """Number of dotted lines, recognised by their dash pattern."""
    return sum(bool(re.search(r"stroke-dasharray: 1,1\.65", style)) for style in _styles(svg))


def _dots(svg: str) -> int:
    """Number of accent-coloured markers."""
    return sum(
        element.tag == f"{SVG}use" and "fill: var(--accent)" in element.get("style", "")
        for element in ET.fromstring(svg).iter()
    )


@pytest.fixture(scope="module")
def every_plot():
    return _every_plot()


def test_plots_are_single_named_elements(every_plot):
    for name, svg in every_plot.items():
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg", name
        assert root.get("role") == "img", name
        assert root.get("aria-label"), name


def test_plots_refer_to_nothing_outside_themselves(every_plot):
    for svg in every_plot.values():
        targets = re.findall(r'href="(.)', svg) + re.findall(r"url\((.)", svg)
        assert set(targets) == {"#"}
        ids = set(re.findall(r'\bid="([^"]+)', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= ids


def test_plots_can_share_a_page(every_plot):
    ids = [set(re.findall(r'\bid="([^"]+)', svg)) for svg in every_plot.values()]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_plots_take_their_colours_from_the_page(every_plot):
    for name, svg in every_plot.items():
        assert not re.search(r"#[0-9a-f]{6}\b", svg), name
        assert "var(--ink)" in svg or "var(--soft)" in svg, name


def test_plots_are_the_same_every_time(every_plot):
    assert _every_plot() == every_plot


def test_plots_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    _every_plot()
    assert dict(matplotlib.rcParams) == before


def test_training_curves_mark_phases_and_the_kept_epoch():
    curves = plots.training_curves(_history("hhffg"), best_step=40)
    assert list(curves) == ["loss", "accuracy", "learning_rate"]
    for svg in curves.values():
        assert _dotted(svg) == 2
    assert "best: epoch 4" in _texts(curves["loss"])
    assert {"train", "validation"} <= set(_texts(curves["accuracy"]))


def test_training_curves_without_validation():
    texts = _texts(plots.training_curves(_history("h", validation=False), best_step=10)["loss"])
    assert "train" in texts
    assert "validation" not in texts


def test_learning_rate_of_zero_leaves_a_gap():
    history = _history()
    history[-1]["learning_rate"] = 0.0
    ET.fromstring(plots.training_curves(history)["learning_rate"])


def test_reliability_diagram_has_a_dot_a_filled_bin():
    bins = metrics.reliability(
        np.array([[0.95, 0.05], [0.94, 0.06], [0.4, 0.6]]), np.array([0, 1, 1])
    )
    assert _dots(plots.reliability_diagram(bins)) == 2 + 1  # One is in the legend.


def test_a_reliability_diagram_can_show_what_was_before_calibration():
    bins = metrics.reliability(np.array([[0.95, 0.05], [0.4, 0.6]]), np.array([0, 1]))
    texts = _texts(plots.reliability_diagram(bins, bins))
    assert {"before calibration", "after calibration"} <= set(texts)
    assert "before calibration" not in _texts(plots.reliability_diagram(bins))


def test_a_risk_coverage_curve_marks_what_is_given():
    plain = _texts(plots.risk_coverage([0.5, 1.0], [0.0, 0.1]))
    assert "images answered" in plain
    assert not {"target", "operating point"} & set(plain)
    marked = plots.risk_coverage([0.5, 1.0], [0.0, 0.1], point=(0.5, 0.0), target=0.05)
    assert {"target", "operating point"} <= set(_texts(marked))


def test_class_recalls_leave_out_classes_without_images():
    svg = plots.class_recalls(_evaluation()["per_class"])
    assert _dots(svg) == 2
    assert {"basophil", "&lt;b&gt;&amp;", "a $x$ y"} <= set(_texts(svg))


def test_a_heat_map_has_a_cell_for_each_value_and_none_for_nan():
    full = plots.heat_map([[0.1, 0.2], [0.3, 0.9]], ["a", "b"], ["1", "2"], "severity", "error")
    holed = plots.heat_map([[0.1, 0.2], [0.3, np.nan]], ["a", "b"], ["1", "2"], "severity", "error")
    cells = [svg.count(f"fill: {plots.PAGE_COLOURS[plots.ACCENT]}") for svg in (full, holed)]
    assert cells == [4, 3]
    assert 'aria-label="error by severity, a row each for a, b"' in full


ODD = ("$x^2$ & $y", "嗜中性粒细胞", "🩸", "é", "\ud83d", "a\nb\x1b[31m", " ", "<b>嗜")
LONG = "immature granulocyte, myelocyte (neutrophilic) with vacuoles and granules " * 3


@pytest.mark.parametrize("classes", [2, 4, 8])
@pytest.mark.parametrize("letters", [10, 30, 60, 200])
def test_plots_have_room_for_long_names(classes, letters):
    names = [LONG[: letters - 1] + str(i) for i in range(classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where it gives up the layout
        scores = {"recall": 0.5, "recall_ci95": (0.2, 0.8)}
        recalls = plots.class_recalls(dict.fromkeys(names, scores))
    assert set(labels.shortened(names)) <= set(_texts(recalls))


def test_names_without_glyphs_are_text_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = {key: {"recall": 0.5, "recall_ci95": (0.2, 0.8)} for key in ODD}
        plot = plots.class_recalls(scores)
    texts = [element.text for element in ET.fromstring(plot).iter(f"{SVG}text")]
    for name in labels.shortened(ODD):
        assert texts.count(name) == 1
    assert re.search("font-family|font:.*sans-serif", plot)
    assert not re.search(r"#[0-9a-f]{6}\b", plot)
    assert plot == plots.class_recalls(scores)


def test_a_sheets_titles_are_neither_formulas_nor_boxes():
    image = np.zeros((8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for title in (*ODD, LONG, f"0.50 {LONG}\n0.50 嗜", "$\\frac{$", ""):
            assert plots.image_sheet([[image]], [[title]]).startswith(b"\x89PNG")
    assert plots._with_glyphs("a嗜\n🩸", [plots.FONT]) == "a\\u55dc\n\\U0001fa78"
    assert plots._families("abc") == [plots.FONT]
