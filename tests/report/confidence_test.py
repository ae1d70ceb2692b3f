"""Tests of bloodjax/report/confidence.py; tests of the page hold what it shows."""

from bloodjax.metrics import wilson_interval
from bloodjax.report import confidence, numbers

SCORES = {"ece": ("Calibration error", True), "nll": ("Loss", False)}


def test_scores_are_shown_before_and_after_calibration():
    fitted = {"method": "temperature", "temperature": 1.5, "ece_before": 0.05, "nll_before": 0.3}
    found = confidence.calibration({"ece": 0.01, "nll": 0.2, "calibration": fitted}, SCORES)
    assert "temperature scaling, temperature 1.500" in found["text"]
    percent = numbers.percent
    assert found["rows"] == [
        ("Calibration error", percent(0.05), percent(0.01)),
        ("Loss", "0.300", "0.200"),
    ]
    assert (found["ece_before"], found["has_before"]) == (0.05, False)


def test_a_calibration_that_improved_nothing_says_so():
    found = confidence.calibration({"calibration": {"method": "none", "ece_before": None}}, SCORES)
    assert found["text"].endswith("no calibration improved them.")
    assert found["rows"] == []
    assert confidence.calibration({}, SCORES) is None


def test_every_split_with_answers_to_refer_has_a_row():
    point = {"threshold": 0.8, "coverage": 0.9, "error": 0.01, "error_ci95": [0.0, 0.02]}
    curve = {"coverage": [0.5, 1.0], "error": [0.0, 0.1]}
    test = {"accuracy": 0.9, "selective": {"operating_point": point, "curve": curve, "aurc": 0.02}}
    train = {"accuracy": 1.0, "selective": {"aurc": None}}
    found = confidence.referral({"test": test, "train": train, "other": {"accuracy": 0.5}}, test)
    assert [row["split"] for row in found["rows"]] == ["test", "train"]
    assert found["rows"][0]["referred"] == numbers.percent(0.1)
    assert found["rows"][0]["interval"] == "0.0–2.0"
    assert found["rows"][1] | {"split": ""} == {
        "split": "",
        "referred": "–",
        "error": "–",
        "interval": "",
        "all": numbers.percent(0.0),
        "aurc": "–",
    }
    assert "<svg" in found["plot"]
    assert not found["band"]
    assert confidence.referral({"test": {"accuracy": 0.9}}, {"accuracy": 0.9}) is None


def test_shares_that_the_detector_rejects_have_intervals():
    test = {"n": 200, "rejection": {"method": "knn", "threshold": 2.0, "rejected": 0.03}}
    found = confidence.rejection({"test": test, "train": {"n": 5}})
    assert (found["method"], found["threshold"]) == ("knn", 2.0)
    (row,) = found["rows"]
    assert row["interval"] == numbers.interval(wilson_interval(6, 200))
    assert confidence.rejection({"train": {"n": 5}}) is None
