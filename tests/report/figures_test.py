"""Tests of bloodjax/report/figures.py, which parse the SVG of plots of each kind."""

import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from bloodjax.report import evaluation_plots, figures, labels, sweep_plots, training_plots

from . import examples
from .examples import LONG_NAME, ODD_NAMES, SVG


def _every_plot() -> dict[str, str]:
    evaluation = examples.evaluation()
    return {
        **training_plots.training_curves(examples.history(), best_step=40),
        "risk": evaluation_plots.risk_coverage(
            [0.5, 1.0], [0.0, 0.1], ([0.0, 0.05], [0.2, 0.3]), point=(0.5, 0.0), target=0.005
        ),
        "groups": evaluation_plots.group_accuracies(
            {"<a>": (0.5, (0.1, 0.9)), "b": (1.0, (0.8, 1.0))}, 0.6
        ),
        "reliability": evaluation_plots.reliability_diagram(evaluation["reliability"]),
        "recalls": evaluation_plots.class_recalls(evaluation["per_class"]),
        "sweep": sweep_plots.sweep_slice(
            [(1e-3, 0.5, 0), (1e-2, 0.4, 1)], "rate", "loss", log=True, options=(), best=1
        ),
        "importances": sweep_plots.importances({"rate": {"share": 0.6, "low": 0.5, "high": 0.7}}),
    }


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


def test_a_command_that_draws_nothing_does_not_import_matplotlib():
    code = (
        "import sys; from bloodjax import run; from bloodjax.evaluation import scoring; "
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("classes", [2, 4, 8])
@pytest.mark.parametrize("letters", [10, 30, 60, 200])
def test_plots_have_room_for_long_names(classes, letters):
    names = [LONG_NAME[: letters - 1] + str(i) for i in range(classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where it gives up the layout
        scores = {"recall": 0.5, "recall_ci95": (0.2, 0.8)}
        recalls = evaluation_plots.class_recalls(dict.fromkeys(names, scores))
    assert set(labels.shortened(names)) <= set(examples.texts(recalls))


def test_names_without_glyphs_are_text_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = {key: {"recall": 0.5, "recall_ci95": (0.2, 0.8)} for key in ODD_NAMES}
        plot = evaluation_plots.class_recalls(scores)
    texts = [element.text for element in ET.fromstring(plot).iter(f"{SVG}text")]
    for name in labels.shortened(ODD_NAMES):
        assert texts.count(name) == 1
    assert re.search("font-family|font:.*sans-serif", plot)
    assert not re.search(r"#[0-9a-f]{6}\b", plot)
    assert plot == evaluation_plots.class_recalls(scores)


def test_characters_that_no_font_has_are_escapes():
    assert figures.with_glyphs("a嗜\n🩸", [figures.FONT]) == "a\\u55dc\n\\U0001fa78"
    assert figures.font_families("abc") == [figures.FONT]
