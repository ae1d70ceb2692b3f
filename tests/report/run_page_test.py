"""Tests of bloodjax/report/run_page.py, which parse the page."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from bloodjax import metrics
from bloodjax.report import run_page

CLASSES = ("basophil", "<b>", "platelet")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(html.parser.HTMLParser):
    """A page's tags, ids and text; fails if tags are not nested correctly."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.pieces = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[key] for key in ("href", "src") if key in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def _evaluation(n=120, right=0.9):
    """Metrics of a model with a constant confidence, which errs on a share of each class."""
    labels = np.arange(n) % 3
    predicted = np.where(np.arange(n) < right * n, labels, (labels + 1) % 3)
    probabilities = np.eye(3)[predicted] * 0.85 + 0.05
    return metrics.evaluate(probabilities, labels, CLASSES, bootstrap=100)


def _run() -> dict:
    """Arguments of `run_page.build` with all sections."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 3), np.uint8)
    epoch = {
        "event": "epoch",
        "train": {"loss": 0.5, "accuracy": 0.8, "images_per_second": 100.0},
        "validation": {"loss": 0.6, "accuracy": 0.7},
        "learning_rate": 1e-3,
        "seconds": 2.0,
    }
    return {
        "name": "run <7>",
        "config": {"seed": 0, "model": {"name": "simple_cnn"}},
        "history": [
            {**epoch, "step": 10, "epoch": 1, "phase": "head"},
            {**epoch, "step": 20, "epoch": 2, "phase": "finetune"},
            {**epoch, "step": 30, "epoch": 3, "phase": "finetune"},
        ],
        "best_step": 20,
        "evaluations": {"test": _evaluation(), "validation": _evaluation(n=60)},
        "baselines": {"test": 0.5},
        "mistakes": [run_page.Mistake(image, "train/<i>.jpg", "<b>", "platelet", 0.987)],
        "audit": {"n": 1200, "junk": 7, "exact_duplicates": 2, "leakage": 0, "dropped": 8},
        "counts": {"train": dict.fromkeys(CLASSES, 1000), "test": {"basophil": 40, "<b>": 2}},
        "statement": ["data: train from <cells>", "2 classes: a 1, b 2", "left out: nothing"],
        "class_weights": dict.fromkeys(CLASSES, 1.25),
        "versions": {"jax": "0.10.2", "device": "one CPU"},
        "timings": {"training": 3725.0, "audit": 65.0, "evaluation": 4.2},
        "profile": {"head": _profile(), "finetune": {**_profile(), "groups": [], "note": "None."}},
    }


def _profile() -> dict:
    times = {"ms": 4.0, "share": 0.8, "thread_ms": 7.0}
    operation = {"operation": "dot.1", "group": "dense", "shape": "f32[2]", "op_name": "a/<b>"}
    return {
        "steps": 3,
        "batch_size": 16,
        "ms_per_step": 5.0,
        "cpu_ms_per_step": 9.0,
        "images_per_second": 3200.0,
        "first_call_seconds": 12.34,
        "flops_per_image": 3e9,
        "peak_flops": None,
        "peak_origin": "no peak is known",
        "mfu": None,
        "note": "",
        "peak_memory_bytes": 2**30,
        "peak_memory_of": "process",
        "groups": [{"group": "dense, <gradient>", **times}],
        "operations": [{**operation, "source": "a.py:1", **times}],
    }


@pytest.fixture(scope="module")
def full():
    return _Page(run_page.build(**_run()))


def test_most_confident_mistakes_come_first():
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    labels = np.array([1, 1, 1, 0, 0])
    found = run_page.most_confident_mistakes(probabilities, labels)
    assert found.tolist() == [2, 4, 3, 0]
    assert run_page.most_confident_mistakes(probabilities, labels, k=2).tolist() == [2, 4]


def test_no_mistakes_are_no_indices():
    assert run_page.most_confident_mistakes(np.eye(3), np.arange(3)).tolist() == []


def test_full_report_has_every_section(full):
    sections = {attributes.get("id") for tag, attributes in full.tags if tag == "section"}
    assert sections == {
        "summary",
        "training",
        "confusion",
        "classes",
        "calibration",
        "mistakes",
        "sets",
        "data",
        "time",
        "config",
    }
    assert len(full.ids) == len(set(full.ids))


def test_full_report_needs_nothing_else(full):
    inside = [link for link in full.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert inside == ["../audit/index.html"]
    assert "script" not in {tag for tag, _ in full.tags}


def test_full_report_states_the_figures(full):
    test = _run()["evaluations"]["test"]
    low, high = test["ci95"]["accuracy"]
    assert f"classifies {100 * test['accuracy']:.1f} % of the 120 test images" in full.text
    assert f"expect an accuracy of {100 * low:.1f}–{100 * high:.1f} %" in full.text
    fewer = 100 * (1 - (1 - test["accuracy"]) / 0.5)
    assert f"reaches 50.0 %. The model makes {fewer:.0f} % fewer errors" in full.text
    assert "head 1, finetune 2–3" in full.text
    assert "training 1 h 2 min" in full.text
    assert "audit 1 min 5 s" in full.text
    assert "evaluation 4 s" in full.text
    assert "3,000 42" in full.text, "the sums of the parts"
    assert "0.10.2" in full.text
    assert "data: train from <cells> 2 classes: a 1, b 2 left out: nothing" in full.text
    assert '"name": "simple_cnn"' in full.text


def test_full_report_says_where_the_time_goes(full):
    assert "Phase head 3,200.0 images/s: 5.0 ms per step of 16 images" in full.text
    assert "utilisation: unknown; no peak is known." in full.text
    assert "dense, <gradient> 4.00 80.0 %" in full.text
    assert "dot.1 dense 4.00 80.0 % f32[2] a.py:1 a/<b>" in full.text
    assert "None." in full.text, "the note of a phase without a table"


def test_names_are_escaped(full):
    assert "run <7>" in full.text
    bold = [full.tags[i - 1][0] for i, (tag, _) in enumerate(full.tags) if tag == "b"]
    assert bold == ["figcaption"], "a class called <b> has become markup"
    assert "i" not in {tag for tag, _ in full.tags}


def test_mistakes_are_shown_with_what_they_were_taken_for(full):
    (image,) = (attributes for tag, attributes in full.tags if tag == "img")
    assert image["alt"] == "<b> predicted as platelet"
    encoded = image["src"].partition(",")[2]
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(decoded, _run()["mistakes"][0].image)
    assert "platelet 99 % label <b> <i>.jpg" in full.text


def test_every_image_and_plot_has_a_text(full):
    plots = [attributes for tag, attributes in full.tags if tag == "svg"]
    assert len(plots) == 6
    assert all(attributes["aria-label"] for attributes in plots)


def test_classes_name_what_they_are_most_often_taken_for(full):
    rows = re.findall(r"(basophil|<b>|platelet) 40 [^×]* (basophil|<b>|platelet) 4×", full.text)
    assert rows == [("basophil", "<b>"), ("<b>", "platelet"), ("platelet", "basophil")]


def test_an_empty_run_says_what_is_missing():
    bare = _Page(run_page.build(name="bare", config={}, history=[], evaluations={}))
    assert "has not been evaluated" in bare.text
    assert "No epoch has been logged" in bare.text
    assert "was not audited" in bare.text
    assert not {tag for tag, _ in bare.tags} & {"svg", "img"}


def test_missing_mistakes_and_baseline_are_said_to_be():
    run = {**_run(), "mistakes": [], "baselines": None}
    text = _Page(run_page.build(**run)).text
    assert "No misclassified images to show" in text
    assert "baseline was not measured" in text


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"baselines": {"test": 0.9}}, "not clearly better"),
        ({"evaluations": {"test": _evaluation(right=0.3)}}, "is poorly calibrated"),
        ({"audit": {"n": 9, "leakage": 1}}, "may be too good"),
    ],
)
def test_reasons_for_doubt_are_said(full, change, warning):
    assert warning not in full.text
    assert warning in _Page(run_page.build(**{**_run(), **change})).text


def test_leaks_that_were_left_out_are_no_reason_for_doubt():
    run = {**_run(), "audit": {"n": 9, "leakage": 1, "dropped": 1, "cleaned": 1}}
    assert "may be too good" not in _Page(run_page.build(**run)).text


def test_a_perfect_score_keeps_its_doubt():
    perfect = _evaluation(n=20, right=1.0)
    assert perfect["ci95"]["accuracy"] == [1, 1]
    text = _Page(run_page.build(name="", config={}, history=[], evaluations={"test": perfect})).text
    assert "expect an accuracy of 83.9–100.0 %" in text


def _effect(low, high):
    return {
        "accuracy": 0.91,
        "accuracy_without": 0.9,
        "difference": 0.01,
        "ci95": [low, high],
        "mcnemar": {"gained": 7, "lost": 5, "p": 0.774},
    }


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.002, 0.02), "it helps"),
        ((-0.01, 0.03), "no significant difference"),
        ((-0.03, -0.01), "it harms"),
    ],
)
def test_whether_the_views_helped(full, interval, verdict):
    assert "Test-time augmentation" not in full.text
    test = {**_evaluation(), "tta": "d4", "tta_effect": _effect(*interval)}
    text = _Page(run_page.build(**{**_run(), "evaluations": {"test": test}})).text
    low, high = (f"{100 * v:+.1f}" for v in interval)
    assert f"a difference of +1.0 points (95 % interval {low} to {high})" in text
    assert "7 images gained, 5 lost (McNemar's p = 0.77)" in text
    assert verdict in text


def test_other_weights_of_the_same_run(full):
    assert "with the selected weights" not in full.text
    beside = {"raw weights": {"accuracy": 0.75}, "best epoch alone": {"accuracy": 0.5}}
    test = {**_evaluation(), "beside": beside}
    text = _Page(run_page.build(**{**_run(), "evaluations": {"test": test}})).text
    others = (
        "with the selected weights; 75.0 % with the raw weights; 50.0 % with the best epoch alone."
    )
    assert others in text


def test_an_ensemble_s_members_and_folds():
    member = {"network": "vgg16", "accuracy": 0.8, "balanced_accuracy": 0.7, "loss": 0.5}
    members = [{"workdir": f"run/<fold{i}>", **member} for i in range(2)]
    folds = [{"n": 60, "accuracy": 0.75}, {"n": 60, "accuracy": 0.85}]
    evaluations = {
        "test": {**_evaluation(), "members": members},
        "out_of_fold": {**_evaluation(), "folds": folds},
    }
    page = _Page(run_page.build(**{**_run(), "history": [], "evaluations": evaluations}))
    assert "run/<fold1> vgg16 80.0 % 70.0 % 0.500" in page.text
    assert "Accuracy by fold: 75.0 % of 60, 85.0 % of 60." in page.text
    assert "The report of each member has its curves" in page.text
    assert "No epoch has been logged" not in page.text
