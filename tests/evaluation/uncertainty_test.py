"""What a run fits to say when to believe it, and what the classifier makes of it."""

import csv
import json
import shutil

import numpy as np
import pytest

from bloodjax import metrics
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import (
    classifier,
    ensemble,
    evaluator,
    referral,
    results,
    scoring,
    uncertainty,
)
from bloodjax.metrics.calibration import NONE, Calibration

FITTED = ("calibration.json", "referral.json", "rejection.json", "rejection.npz")


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(24, 32, seed=2)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(uncertainty.console, "log_info", lines.append)
    return lines


@pytest.fixture
def earlier(trained, tmp_path):
    """The run as an earlier version left it."""
    shutil.copytree(trained, tmp_path / "run")
    for name in FITTED:
        (tmp_path / "run" / name).unlink()
    return tmp_path / "run"


def test_a_run_keeps_what_was_fitted(trained):
    validation = json.loads((trained / "evaluate/validation/metrics.json").read_text())
    fit = json.loads((trained / "calibration.json").read_text())["fit"]
    for score in ("nll", "ece"):
        assert validation[score] == pytest.approx(fit[score], abs=1e-6)
        assert validation["calibration"][f"{score}_before"] == pytest.approx(fit[f"{score}_before"])
    assert fit["n"] == validation["n"]
    model = classifier.load(trained)
    assert model.is_calibrated
    assert validation["calibration"]["temperature"] == model.calibrations["default"].temperature
    point = validation["selective"]["operating_point"]
    assert point["threshold"] == model.referral.threshold
    assert point["referred"] == pytest.approx(1 - point["coverage"])


def test_calibrated_probabilities_are_the_default(trained, cells, monkeypatch):
    model = classifier.load(trained)
    model.calibrations = {
        "default": Calibration("temperature", 0.5),
        "none": Calibration("temperature", 2.0),
    }
    raw = np.random.default_rng(0).dirichlet(np.ones(8), size=(24, 2)).astype(np.float32)

    def predict(images, config):
        return raw if config.with_plain else raw[:, 0]

    monkeypatch.setattr(model, "_predict", predict)
    for tta, name in ((None, "none"), ("none", "none"), ("flip", "default")):
        expected = model.calibrations[name].apply(raw[:, 0])
        np.testing.assert_array_equal(model.predict(cells.images, tta), expected)
        np.testing.assert_array_equal(model.predict(cells.images, tta, calibrated=False), raw[:, 0])
    both = model.predict_with_plain(cells.images, "flip")
    np.testing.assert_array_equal(both[:, 0], model.calibrations["default"].apply(raw[:, 0]))
    np.testing.assert_array_equal(both[:, 1], model.calibrations["none"].apply(raw[:, 1]))
    assert model.predict_with_plain(cells.images, "flip", calibrated=False) is raw


def test_answers_refer_what_is_unsure_or_unlike(trained, cells):
    model = classifier.load(trained)
    found = model.answer(cells.images)
    np.testing.assert_allclose(found.probabilities, model.predict(cells.images), atol=1e-6)
    assert found.predicted.tolist() == found.probabilities.argmax(axis=1).tolist()
    unsure = found.confidence < model.referral.threshold
    unlike = model.detector.score(model.describe_fully(cells.images)) > model.detector.threshold
    assert found.refer.tolist() == (unsure | unlike).tolist()
    np.testing.assert_allclose(found.distance, model.distance(cells.images))
    assert len(model.answer(cells.images[:0])) == 0


def test_weights_that_nothing_was_fitted_to_have_no_calibration(trained):
    model = classifier.load(trained, "raw")
    assert not model.is_calibrated
    assert model.referral is model.detector is None


def test_an_earlier_run_says_how_to_fit_one_and_leaves_the_columns_empty(earlier, cells, tmp_path):
    model = ensemble.load(earlier)
    remark = uncertainty.remark(model, [earlier])
    assert remark.endswith(f"; to fit one: bloodjax evaluate --workdir={earlier} --calibrate")
    assert model.calibration() is NONE
    source = results.of_data("cells", "synthetic:24")
    result, _ = evaluator.evaluate(model, cells, tmp_path / "out", tta=None, source=source)
    assert not {"calibration", "rejection", "conformal"} & result.keys()
    assert "operating_point" not in result["selective"]
    _, few = evaluator.lines("cells", result)
    assert few.startswith("cells: too few images to know the recall (95 % intervals): ")
    with (tmp_path / "out/predictions.csv").open() as file:
        assert {(row["refer"], row["why"]) for row in csv.DictReader(file)} == {("", "")}


@pytest.mark.full
def test_evaluate_fits_it_to_an_earlier_run_as_training_does(earlier, trained, said):
    scoring.calibrate_runs([earlier])
    for name in FITTED[:2]:
        found, expected = (json.loads((run / name).read_text()) for run in (earlier, trained))
        assert found.keys() == expected.keys()
        for key, value in found.items():
            if isinstance(value, float):
                assert value == pytest.approx(expected[key], abs=1e-5)
    assert uncertainty.remark(ensemble.load(earlier), [earlier]) is None
    assert [line for line in said if line.startswith("calibration: ")]


@pytest.mark.full
def test_another_target_error_for_a_trained_run(earlier):
    found = {}
    for target in (None, 0.9):
        scoring.calibrate_runs([earlier], target)
        found[target] = ensemble.load(earlier).referral
    assert found[None].target_error == 0.005
    assert found[0.9].target_error == 0.9
    assert found[0.9].threshold < found[None].threshold


@pytest.mark.parametrize(
    ("calibrate", "target", "line"),
    [
        (False, 0.1, "--target_error is used by --calibrate only"),
        (True, 1.5, "--target_error=1.5: expected a number above 0 and below 1"),
    ],
)
def test_a_target_error_that_cannot_be_used_is_one_line(earlier, calibrate, target, line):
    with pytest.raises(UserError, match=line):
        scoring.evaluate_runs(
            [earlier], "synthetic:8", None, None, None, calibrate=calibrate, target_error=target
        )


def test_without_validation_there_is_one_line_and_no_file(trained, cells, said, tmp_path):
    model = classifier.load(trained)
    uncertainty.fit_run(model, tmp_path, cells, None)
    assert not model.is_calibrated
    assert not any(tmp_path.iterdir())
    assert said[-1].startswith("no validation split: the probabilities are not calibrated")


def test_a_run_without_validation_cannot_be_fitted(earlier):
    file = earlier / "splits.json"
    content = json.loads(file.read_text())
    for by_part in content.values():
        if isinstance(by_part, dict):
            by_part.pop("validation", None)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the run has no validation split"):
        scoring.evaluate_runs([earlier], "synthetic:160", "test", None, None, calibrate=True)
    assert not any((earlier / name).exists() for name in FITTED)


def test_a_place_that_cannot_be_written_to(trained, cells, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder to write to"):
        uncertainty.fit_run(classifier.load(trained), tmp_path / "file", cells, cells)


def test_the_config_chooses_method_target_and_sets(trained, cells, said, tmp_path):
    model = classifier.load(trained)
    content = model.config.to_dict()
    content["evaluation"] |= {"calibration": "vector", "target_error": 0.3, "conformal": 0.2}
    content["evaluation"] |= {"rejection": "none"}
    model.config = type(model.config)(content)
    uncertainty.fit_run(model, tmp_path, cells, cells)
    assert model.calibrations["default"].method == "vector"
    assert (model.referral.target_error, model.referral.alpha) == (0.3, 0.2)
    source = results.of_data("cells", "synthetic:24")
    result, _ = evaluator.evaluate(model, cells, tmp_path / "out", tta=None, source=source)
    assert result["conformal"]["coverage"] >= 0.8  # they were fitted to the same images
    assert result["conformal"]["threshold"] == model.referral.set_threshold
    if not model.referral.answers_nothing:
        assert result["selective"]["operating_point"]["error"] <= 0.3
    with (tmp_path / "out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["predicted"] in row["set"] for row in rows)


def test_members_are_calibrated_before_they_are_averaged(trained, cells, tmp_path):
    shutil.copytree(trained, tmp_path / "b")
    model = ensemble.load([trained, tmp_path / "b"])
    first, second = model.members.values()
    second.calibrations = dict.fromkeys(("default", "none"), Calibration("temperature", 0.3))
    second.referral = referral.Referral(0.1, 0.99, 24)
    expected = (first.predict(cells.images) + second.predict(cells.images)) / 2
    np.testing.assert_allclose(model.predict(cells.images), expected, atol=1e-6)
    assert model.referral.threshold == max(first.referral.threshold, 0.99)
    source = results.of_data("cells", "synthetic:24")
    result, found = evaluator.evaluate(model, cells, tmp_path / "out", tta=None, source=source)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    before = model.predict(cells.images, calibrated=False)
    assert result["calibration"]["ece_before"] == pytest.approx(
        metrics.quick(before, cells.labels)["ece"], abs=1e-6
    )
    assert result["rejection"]["method"] == "vote of the members"
    second.calibrations = {}
    assert not model.is_calibrated
    assert uncertainty.remark(model, [trained]).startswith(f"{tmp_path / 'b'}: the run has no cal")
    second.referral = None
    assert model.referral is None


def test_what_a_split_s_lines_say():
    result = {"accuracy": 0.75, "ci95": {"accuracy": [0.5, 1.0]}, "n": 200, "per_class": {}}
    point = {"referred": 0.021, "error": 0.004, "error_ci95": [0.0, 0.009]}
    result["selective"] = {"operating_point": point}
    result["rejection"] = {"rejected": 0.5, "expected": 0.01}
    _, refers, unlike = evaluator.lines("test", result)
    assert refers == "test: refers 2.1 % of cells; error on the rest 0.40 %, at most 0.90 %"
    assert unlike.startswith("test: these images are unlike the training ones: 100 of 200 (50.0 %)")
    point |= {"referred": 1.0, "error": None, "error_ci95": None}
    assert evaluator.lines("test", result)[1] == "test: refers every image"
