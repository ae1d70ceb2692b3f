"""Tests of bloodjax/report/run_page.py, which parse the page."""

import base64
import html.parser
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from bloodjax import metrics
from bloodjax.metrics import grouped
from bloodjax.report import run_content, run_page
from bloodjax.report.run_content import Picture

from . import examples

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


def _build(**content) -> _Page:
    return _Page(run_page.build(run_content.RunContent(**content)))


def _run() -> dict:
    """The content of a report with the sections that every run has, and a profile."""
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
        "mistakes": [Picture(image, "train/<i>.jpg", "<b>", "platelet", 0.987)],
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
    return _build(**_run())


def test_full_report_has_every_section(full):
    sections = {attributes.get("id") for tag, attributes in full.tags if tag == "section"}
    assert sections == {
        "summary",
        "next",
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
    inside = [link for link in full.links if not link.startswith(("#", "data:image/jpeg;base64,"))]
    assert inside == ["../audit/index.html"]
    assert [attributes for tag, attributes in full.tags if tag == "script"] == [{}]


def test_links_within_the_report_lead_somewhere(full, complete):
    for page in (full, complete):
        within = {link[1:] for link in page.links if link.startswith("#")}
        assert within
        assert within <= set(page.ids)


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
    before = {full.tags[i - 1][0] for i, (tag, _) in enumerate(full.tags) if tag == "b"}
    assert before == {"figcaption", "p"}, "a class called <b> has become markup"
    assert "i" not in {tag for tag, _ in full.tags}


def test_mistakes_are_shown_with_what_they_were_taken_for(full):
    (image,) = (attributes for tag, attributes in full.tags if tag == "img")
    assert image["alt"] == "<b> predicted as platelet"
    encoded = image["src"].partition(",")[2]
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert decoded.shape == (12, 12, 3)
    difference = decoded.astype(float) - _run()["mistakes"][0].image
    assert np.abs(difference.mean()) < 3
    assert "platelet 99 % label <b> <i>.jpg" in full.text


def test_every_image_and_plot_has_a_text(full):
    plots = [attributes for tag, attributes in full.tags if tag == "svg"]
    assert len(plots) == 5
    assert all(attributes["aria-label"] for attributes in plots)


def test_the_matrix_has_every_count_and_the_share_of_the_diagonal(full):
    table = full.text.partition("predicted label")[2].partition("Results by class")[0]
    assert "basophil 36 90 % 4 0" in table
    assert "<b> 0 36 90 % 4" in table
    assert "platelet 4 0 36 90 %" in table


def test_classes_name_what_they_are_most_often_taken_for(full):
    rows = re.findall(r"(basophil|<b>|platelet) 40 [^×]* (basophil|<b>|platelet) 4×", full.text)
    assert rows == [("basophil", "<b>"), ("<b>", "platelet"), ("platelet", "basophil")]


@pytest.mark.parametrize("tests", [{}, {"head": examples.RANGE_TEST}])
def test_the_range_test_of_each_phase_is_shown(tests):
    content = run_content.RunContent(
        name="run", config={}, history=examples.history("h"), evaluations={}, range_tests=tests
    )
    page = run_page.build(content)
    assert ("Learning rate: range tests" in page) == bool(tests)
    assert ("<h3>Head: 0.005</h3>" in page) == bool(tests)
    assert page.count("loss over the learning rate in the range test of head") == len(tests)


def test_an_empty_run_says_what_is_missing():
    bare = _build(name="bare", config={}, history=[], evaluations={})
    assert "has not been evaluated" in bare.text
    assert "No epoch has been logged" in bare.text
    assert "was not audited" in bare.text
    assert not {tag for tag, _ in bare.tags} & {"svg", "img"}


def test_a_run_that_was_adapted_links_to_the_page_about_it():
    content = {"name": "bare", "config": {}, "history": [], "evaluations": {}}
    assert "site.html" in _build(**content, site_page="site.html").links
    assert "site.html" not in _build(**content).links


def test_missing_mistakes_and_baseline_are_said_to_be():
    run = {**_run(), "mistakes": [], "baselines": {}}
    text = _build(**run).text
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
    assert warning in _build(**{**_run(), **change}).text


def test_leaks_that_were_left_out_are_no_reason_for_doubt():
    run = {**_run(), "audit": {"n": 9, "leakage": 1, "dropped": 1, "cleaned": 1}}
    assert "may be too good" not in _build(**run).text


def test_a_perfect_score_keeps_its_doubt():
    perfect = _evaluation(n=20, right=1.0)
    assert perfect["ci95"]["accuracy"] == pytest.approx([0.8389, 1], abs=1e-4)
    text = _build(name="", config={}, history=[], evaluations={"test": perfect}).text
    assert "expect an accuracy of 83.9–100.0 %" in text


def _effect(gained, lost, p):
    return {
        "accuracy": 0.91,
        "accuracy_without": 0.9,
        "difference": (gained - lost) / 1000,
        "ci95": [-0.001, 0.008],
        "mcnemar": {"gained": gained, "lost": lost, "p": p},
    }


@pytest.mark.parametrize(
    ("gained", "lost", "p", "verdict"),
    [
        (9, 1, 0.021, "it helps"),
        (4, 0, 0.125, "no significant difference"),
        (0, 0, 1.0, "no significant difference"),
        (1, 9, 0.021, "it harms"),
    ],
)
def test_whether_the_views_helped(full, gained, lost, p, verdict):
    assert "Test-time augmentation" not in full.text
    test = {**_evaluation(), "tta": "d4", "tta_effect": _effect(gained, lost, p)}
    text = _build(**{**_run(), "evaluations": {"test": test}}).text
    points = f"{(gained - lost) / 10:+.1f}"
    assert f"a difference of {points} points (95 % interval -0.1 to +0.8)" in text
    assert f"{gained} images gained, {lost} lost (McNemar's p = {p:.2g})" in text
    assert verdict in text


def test_other_weights_of_the_same_run(full):
    assert "with the selected weights" not in full.text
    beside = {"raw weights": {"accuracy": 0.75}, "best epoch alone": {"accuracy": 0.5}}
    test = {**_evaluation(), "beside": beside}
    text = _build(**{**_run(), "evaluations": {"test": test}}).text
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
    page = _build(**{**_run(), "history": [], "evaluations": evaluations})
    assert "run/<fold1> vgg16 80.0 % 70.0 % 0.500" in page.text
    assert "Accuracy by fold: 75.0 % of 60, 85.0 % of 60." in page.text
    assert "The report of each member has its curves" in page.text
    assert "No epoch has been logged" not in page.text


def _picture(number, label="basophil", predicted="platelet", overlay=False):
    image = np.full((12, 12, 3), number, np.uint8)
    return Picture(image, f"{number}.png", label, predicted, 0.4, image if overlay else None)


def _complete() -> dict:
    """The content of a report with every section."""
    run = _run()
    test = {
        **run["evaluations"]["test"],
        "calibration": {
            "method": "temperature",
            "temperature": 1.5,
            "ece_before": 0.123,
            "nll_before": 0.456,
            "reliability_before": run["evaluations"]["test"]["reliability"],
        },
        "selective": {
            "aurc": 0.0123,
            "curve": {
                "coverage": [0.5, 1.0],
                "error": [0.01, 0.1],
                "error_ci95": [[0.0, 0.02], [0.05, 0.2]],
            },
            "operating_point": {
                "threshold": 0.7,
                "coverage": 0.975,
                "error": 0.004,
                "error_ci95": [0.001, 0.009],
            },
        },
        "rejection": {"method": "knn", "threshold": 3.25, "rejected": 0.05},
    }
    finding = run_content.Finding(
        "a/s.png", "train", "<b>", "platelet", 0.015, 0.97, 0.955, "heads"
    )
    suspect = run_content.Suspect(finding, np.zeros((12, 12, 3), np.uint8))
    keys = [f"patient {i % 3}" for i in range(99)]
    probabilities = np.where(np.arange(99)[:, None] % 3 > 0, [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    test["groups"] = grouped.evaluate(probabilities, np.zeros(99, int), keys, CLASSES, bootstrap=9)
    return {
        **run,
        "evaluations": {"test": test, "validation": run["evaluations"]["validation"]},
        "mistakes": [_picture(i, overlay=True) for i in range(2)],
        "cells": {("basophil", "<b>"): [_picture(3, predicted="<b>")]},
        "examples": {"<b>": run_content.ClassExamples([_picture(4, "<b>", "<b>")], [])},
        "labels": run_content.LabelReview(
            [("train", 500, 7, "heads"), ("test", 100, 1, "it")], [suspect]
        ),
    }


@pytest.fixture(scope="module")
def complete():
    return _build(**_complete())


def test_sections_of_a_complete_run(complete):
    sections = {attributes.get("id") for tag, attributes in complete.tags if tag == "section"}
    assert {"referral", "unlike", "examples", "labels", "groups"} <= sections
    text = complete.text
    assert "(temperature scaling, temperature 1.500)" in text
    assert "Expected calibration error 12.3 %" in text
    assert "refers 2.5 % of the test images; its error on the rest is 0.4 %, at most 0.9 %" in text
    assert "test 120 5.0 % 2.3–10.5" in text, "the share of test that the detector rejects"
    assert "label <b> 1.5 % platelet? 97.0 % train: s.png" in text
    assert "train 500 7 heads" in text
    assert "basophil predicted as <b> 1 of 4 images" in text
    assert "patient 0 33 0.0 % 0.0–10.4 basophil <b> <b>" in text
    assert "3 groups are too few for an interval" in text.lower()
    assert "On images of new groups, such as patients, expect" in text
    assert "40 % · unsure" in text, "a picture below the threshold of confidence"


def test_overlays_are_beside_their_images(complete):
    alts = [attributes["alt"] for tag, attributes in complete.tags if tag == "img"]
    first = alts.index("where the network looked") - 1
    assert alts[first : first + 4] == [
        *("basophil predicted as platelet", "where the network looked"),
        *("basophil predicted as platelet", "where the network looked"),
    ]
    assert alts.count("where the network looked") == 2


def test_only_cells_with_images_are_links(complete):
    links = [link for link in complete.links if link.startswith("#cell")]
    assert links == ["#cell-0-1"]


def test_no_threshold_meets_the_target():
    run = _complete()
    point = {"threshold": 2.0, "coverage": 0.0, "error": None, "error_ci95": None}
    run["evaluations"]["test"]["selective"]["operating_point"] = point
    assert "so the model refers every image" in _build(**run).text


def _many(k) -> dict:
    """The content of a report on `k` classes of long names, with more images than fit."""
    classes = [f"a class with the rather long name {i}" for i in range(k)]
    labels = np.arange(2 * k) % k
    predicted = np.where(np.arange(2 * k) < k, labels, (labels + 7) % k)
    probabilities = np.eye(k)[predicted] * 0.7 + 0.3 / k
    evaluation = metrics.evaluate(probabilities, labels, classes, bootstrap=1)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    many = [Picture(noise, str(i), classes[0], classes[7], 0.7, noise) for i in range(24)]
    return {
        "name": "",
        "config": {},
        "history": [],
        "evaluations": {"test": evaluation, "validation": evaluation},
        "mistakes": many,
        "cells": {(name, classes[(i + 7) % k]): many[:8] for i, name in enumerate(classes)},
        "counts": {"train": dict.fromkeys(classes, 3)},
    }


def test_a_page_leaves_out_images_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(run_page, "MAX_BYTES", 500_000)
    content = run_content.RunContent(**_many(45))
    page = run_page.build(content)
    assert 400_000 < len(page.encode()) <= 500_000
    parsed = _Page(page)
    assert 10 < sum(tag == "img" for tag, _ in parsed.tags) < 48
    assert "Shown: the 40 classes of the most mistakes; 5 classes left out" in parsed.text
    assert "of those chosen for this report do not fit into this page" in parsed.text


@pytest.mark.full
def test_a_page_of_many_classes_has_at_most_5_mb():
    page = run_page.build(run_content.RunContent(**_many(600)))
    assert 3_000_000 < len(page.encode()) <= 5_000_000


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.full
def test_the_report_in_a_browser(browser, tmp_path):
    run = _complete()
    other = [_picture(5, predicted="platelet")]
    file = tmp_path / "index.html"
    file.write_text(
        run_page.build(
            run_content.RunContent(
                **run | {"cells": {**run["cells"], ("platelet", "basophil"): other}}
            )
        ),
        encoding="utf-8",
    )
    page = browser.new_page(viewport={"width": 390, "height": 800})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") == 390, "as wide as the phone"
    assert page.locator(".cell:visible").count() == 0
    page.locator('a[href="#cell-2-0"]').click()
    assert (
        page.locator(".cell:visible h3").inner_text().startswith("platelet predicted as basophil")
    )
    page.locator('a[href="#cell-0-1"]').click()
    assert page.locator(".cell:visible").count() == 1

    groups = page.locator("#groups tbody th", has_text="patient")
    assert groups.all_inner_texts() == ["patient 0", "patient 1", "patient 2"]
    accuracy = page.locator("#groups th button", has_text="Accuracy")
    accuracy.click()
    assert groups.last.inner_text() == "patient 0", "the lowest of a descending order"
    accuracy.click()
    assert groups.first.inner_text() == "patient 0"
    page.locator("#groups th button", has_text="Group").click()
    page.locator("#groups th button", has_text="Group").click()
    assert groups.all_inner_texts() == ["patient 2", "patient 1", "patient 0"]
    assert page.locator('#groups th[aria-sort="descending"]').inner_text().startswith("Group")

    gallery = page.locator('[data-filter="mistakes"] > figure:visible')
    assert gallery.count() == 2
    page.locator("#mistakes input").fill("1.PNG")
    assert gallery.count() == 1
    assert page.locator("#mistakes .tools").inner_text().endswith("1 of 2 shown")
    page.locator("#mistakes select").first.select_option("basophil")
    assert gallery.count() == 1

    assert not messages
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.mark.full
def test_the_report_without_javascript(browser, tmp_path):
    file = tmp_path / "index.html"
    file.write_text(run_page.build(run_content.RunContent(**_complete())), encoding="utf-8")
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert page.locator(".cell:visible").count() == 1, "every image can be seen"
    assert page.locator("th button, .tools").count() == 0, "and nothing that does not work"
