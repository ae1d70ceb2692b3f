import numpy as np

from bloodjax import metrics
from bloodjax.report import evaluation_plots, figures

from . import examples


def test_reliability_diagram_has_a_dot_a_filled_bin():
    bins = metrics.reliability(
        np.array([[0.95, 0.05], [0.94, 0.06], [0.4, 0.6]]), np.array([0, 1, 1])
    )
    assert (
        examples.dots(evaluation_plots.reliability_diagram(bins)) == 2 + 1
    )  # One is in the legend.


def test_a_reliability_diagram_can_show_what_was_before_calibration():
    bins = metrics.reliability(np.array([[0.95, 0.05], [0.4, 0.6]]), np.array([0, 1]))
    texts = examples.texts(evaluation_plots.reliability_diagram(bins, bins))
    assert {"before calibration", "after calibration"} <= set(texts)
    assert "before calibration" not in examples.texts(evaluation_plots.reliability_diagram(bins))


def test_a_risk_coverage_curve_marks_what_is_given():
    plain = examples.texts(evaluation_plots.risk_coverage([0.5, 1.0], [0.0, 0.1]))
    assert "images answered" in plain
    assert not {"target", "operating point"} & set(plain)
    marked = evaluation_plots.risk_coverage([0.5, 1.0], [0.0, 0.1], point=(0.5, 0.0), target=0.05)
    assert {"target", "operating point"} <= set(examples.texts(marked))


def test_class_recalls_leave_out_classes_without_images():
    svg = evaluation_plots.class_recalls(examples.evaluation()["per_class"])
    assert examples.dots(svg) == 2
    assert {"basophil", "&lt;b&gt;&amp;", "a $x$ y"} <= set(examples.texts(svg))


def test_a_heat_map_has_a_cell_for_each_value_and_none_for_nan():
    full = evaluation_plots.heat_map(
        [[0.1, 0.2], [0.3, 0.9]], ["a", "b"], ["1", "2"], "severity", "error"
    )
    holed = evaluation_plots.heat_map(
        [[0.1, 0.2], [0.3, np.nan]], ["a", "b"], ["1", "2"], "severity", "error"
    )
    cells = [svg.count(f"fill: {figures.PAGE_COLOURS[figures.ACCENT]}") for svg in (full, holed)]
    assert cells == [4, 3]
    assert 'aria-label="error by severity, a row each for a, b"' in full
