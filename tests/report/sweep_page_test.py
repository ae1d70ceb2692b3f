"""Tests of bloodjax/report/sweep_page.py."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from bloodjax.report import sweep_page, sweep_plots
from bloodjax.report.sweep_page import SweepContent

SPACE = {
    "rate": "log_uniform(0.0001, 0.01)",
    "depth": "integer(1, 4)",
    "net <b>": "choice('a', 'b')",
}


def trial(number, value=None, state="complete", remark="", epochs=2):
    values = {"rate": 1e-4 * (number + 1), "depth": 1 + number % 4, "net <b>": "ab"[number % 2]}
    known = {epoch: (value or 1.0) + 1 / epoch for epoch in range(1, epochs + 1)}
    return {
        "number": number,
        "state": state,
        "value": value,
        "values": values,
        "epochs": known,
        "seconds": 75.0,
        "remark": remark,
    }


METRICS = {"n": 1234, "accuracy": 0.97, "balanced_accuracy": 0.96, "nll": 0.125}
TESTED = {
    "date": "2026-01-02",
    "trials": 5,
    "best": {"trial": 3, **METRICS, "ci95": [0.95, 0.98]},
    "own": {"trial": 0, **METRICS, "accuracy": 0.912, "ci95": None},
}
CONTENT = SweepContent(
    name="my <sweep>",
    measure="validation loss",
    larger_is_better=False,
    network="resnet50",
    space=SPACE,
    log_keys=("rate",),
    options={"net <b>": ("a", "b")},
    trials=[
        trial(0, 0.5),
        trial(1, 0.4),
        trial(2, state="pruned", epochs=1),
        trial(3, 0.25),
        trial(4, state="failed", remark="out of memory: <big>", epochs=0),
    ],
    best=3,
    own=0,
    importances={"rate": {"share": 0.7, "low": 0.4, "high": 0.9}, "depth": {"share": 0.3}},
    min_complete=5,
    tests=[],
    best_file="s/best.py",
    workdir="s",
    has_test=True,
)


class _Checker(HTMLParser):
    """Checks that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, _):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, *_):
        pass


def build(**changes):
    page = sweep_page.build(dataclasses.replace(CONTENT, **changes))
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    return page


@pytest.fixture
def no_plots(monkeypatch):
    for name in ("sweep_history", "importances", "sweep_slice", "parallel_coordinates"):
        monkeypatch.setattr(sweep_plots, name, lambda *_, name=name, **__: f"<svg>{name}</svg>")


def test_the_page_has_the_best_trial_and_all_others():
    page = build()
    assert not re.search(r"https?://(?!www\.w3\.org)|<script", page)
    assert page.count("<svg ") == 3 + len(SPACE)
    assert "<b>" not in page
    assert "my &lt;sweep&gt;" in page
    assert "out of memory: &lt;big&gt;" in page
    assert "bloodjax train --config=s/best.py --workdir=DIR" in page
    assert "s/trials/00003" in page
    rows = re.findall(r'<tr[^>]*><th scope="row">(\d)', page[page.index('id="trials"') :])
    assert rows == ["3", "1", "0", "2", "4"]  # the best first, then those without a value
    assert "1 min 15 s" in page


@pytest.mark.usefixtures("no_plots")
def test_few_trials_are_said_with_the_importances():
    assert "3 trials for 3 keys are few: read these shares as a hint" in build()
    many = [trial(number, 1 / (number + 1)) for number in range(30)]
    assert "are few" not in build(trials=many, best=29)
    assert "need at least 5 complete trials" in build(importances={})


@pytest.mark.usefixtures("no_plots")
def test_a_sweep_without_gain_says_so():
    assert "No trial is better" not in build()
    assert "No trial is better than the config's own values" in build(best=0)
    assert "No trial is better than the config's own" in build(larger_is_better=True)
    failed = [trial(0, state="failed", epochs=0), *CONTENT.trials[1:]]
    page = build(trials=failed, own=None)
    assert "No complete trial has the config's own values, because trial 0 failed." in page


@pytest.mark.usefixtures("no_plots")
def test_test_is_evaluated_once():
    assert "No trial has seen a test image" in build()
    assert "<code>--test</code>" in build()
    page = build(tests=[TESTED])
    assert "No trial has seen a test image" not in page
    assert "97.0\N{NO-BREAK SPACE}% (95.0\N{NO-BREAK SPACE}% – 98.0\N{NO-BREAK SPACE}%)" in page
    assert "91.2\N{NO-BREAK SPACE}%" in page
    assert "Macro F1" not in page  # not in these metrics
    assert "no longer independent" not in page
    assert "The best trial has changed since" not in page
    page = build(tests=[TESTED, TESTED | {"best": {**TESTED["best"], "trial": 1}}])
    assert "2 trials were evaluated on test" in page
    assert "The best trial has changed since: it is trial 3 now" in page
    assert 'id="test"' not in build(has_test=False)


def test_a_sweep_that_has_just_started_has_a_page():
    running = trial(0, state="running", epochs=1) | {"seconds": None, "values": {}}
    page = build(trials=[running], best=None, own=None, importances={})
    assert "No trial is complete yet." in page
    assert page.count("<svg ") == 1
    page = build(trials=[], best=None, own=None, importances={})
    assert "<svg " not in page


def test_durations():
    assert [sweep_page.duration(x) for x in (None, 9.4, 75.0, 3725.0)] == [
        "–",
        "9 s",
        "1 min 15 s",
        "1 h 2 min",
    ]
