"""A run whose images have any number of labels: what it fits, writes and refuses."""

import csv
import json

import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import metrics, run
from bloodjax.data import sources, splits
from bloodjax.errors import UserError
from bloodjax.evaluation import (
    answers,
    classifier,
    ensemble,
    evaluator,
    model_folder,
    multi_label,
    results,
    tables,
    thresholds,
    uncertainty,
)
from bloodjax.evaluation.classifier import Classifier
from bloodjax.metrics.label_calibration import LabelCalibration
from bloodjax.training import factory

from ..data.formats import medmnist_files

SOURCE = results.of_data("chest", "chestmnist.npz")


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    path = tmp_path_factory.mktemp("chest") / "chestmnist.npz"
    return medmnist_files.write(path, "chestmnist", counts=(64, 40, 40))


@pytest.fixture(scope="module")
def config(chest, make_config):
    return make_config(
        **{
            "data.train": str(chest),
            "data.task": "multi-label",
            "data.image_size": 28,
            "data.clean": "report",
            "evaluation.bootstrap": 5,
        }
    )


@pytest.fixture(scope="module")
def validation(chest):
    return bloodjax.load_dataset(chest, 28).take(np.arange(64, 104))


@pytest.fixture(scope="module")
def untrained(config, validation):
    classes = validation.classes
    return Classifier(config, classes, factory.variables(config, len(classes)), 0)


@pytest.fixture(scope="module")
def evaluated(untrained, validation, tmp_path_factory):
    """The untrained classifier with what is fitted to it, its folder, and its evaluation."""
    folder = tmp_path_factory.mktemp("fitted")
    model = untrained.at(None)
    uncertainty.fit_run(model, folder, validation, validation)
    comparisons = {"raw weights": untrained}
    result, probabilities = evaluator.evaluate(
        model,
        validation,
        folder / "out",
        tta="flip",
        source=SOURCE,
        comparisons=comparisons,
    )
    return model, folder, result, probabilities


@pytest.mark.full
def test_probabilities_of_labels_do_not_sum_to_one(untrained, validation):
    p = untrained.predict(validation.images)
    assert p.shape == (40, 14)
    assert np.abs(p.sum(axis=1) - 1).min() > 1
    logits = untrained.describe(validation.images)[1]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.full
def test_the_files_that_are_fitted_load_again(evaluated, config, untrained):
    model, folder, _, _ = evaluated
    assert {path.name for path in folder.glob("*.json")} == {"calibration.json", "thresholds.json"}
    variables = untrained.predictor.variables
    loaded = classifier.with_files_of(folder, config, model.classes, variables, 0)
    assert loaded.thresholds == model.thresholds
    assert loaded.calibrations == model.calibrations
    assert isinstance(loaded.calibration(), LabelCalibration)
    assert loaded.referral is loaded.detector is loaded.baseline is None


def test_a_shared_folder_has_the_thresholds(untrained, tmp_path):
    model, workdir, shared = untrained.at(None), tmp_path / "run", tmp_path / "model"
    workdir.mkdir()
    shared.mkdir()
    thresholds.write(workdir, model.classes, [0.1 + 0.05 * i for i in range(14)])
    saved = {"seed": 0, "sources": {}, "parts": {}, "pixels": {}, "classes": list(model.classes)}
    splits.write(workdir / "splits.json", saved)
    model_folder.write(shared, model, workdir, {})
    assert model_folder.load(shared).thresholds == thresholds.load(workdir, model.classes) != ()


@pytest.mark.full
def test_calibration_lowers_the_loss_of_the_images_it_is_fitted_to(evaluated, validation):
    model, folder, _, _ = evaluated
    fit = json.loads((folder / "calibration.json").read_text())["fit"]
    assert fit["nll"] < fit["nll_before"]
    assert fit["nll"] == pytest.approx(
        metrics.quick(model.predict(validation.images), validation.labels)["loss"]
    )


@pytest.mark.full
def test_metrics_json_has_the_metrics_of_labels(evaluated, validation):
    _, folder, result, probabilities = evaluated
    assert json.loads((folder / "out/metrics.json").read_text()) == result
    expected = metrics.evaluate(probabilities, validation.labels, validation.classes, bootstrap=5)
    assert {name: result[name] for name in expected} == expected
    assert {"auc_ovr", "map", "subset_accuracy", "per_class", "calibration"} < result.keys()
    assert result["thresholds"]["per_class"]["hernia"]["threshold"] > 0
    assert set(result["beside"]["raw weights"]) >= {"loss", "auc"}
    assert not {"selective", "rejection", "conformal", "baseline", "groups"} & result.keys()


@pytest.mark.full
def test_predictions_csv_has_the_labels_joined_and_a_probability_of_each(evaluated, validation):
    model, folder, _, probabilities = evaluated
    with (folder / "out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    above = probabilities > np.array(model.thresholds)
    for row, has, p, true in zip(rows, above, probabilities, validation.labels, strict=True):
        assert row["predicted"] == ";".join(np.array(model.classes)[has])
        assert row["label"] == ";".join(np.array(model.classes)[true == 1])
        assert row["confidence"] == row["refer"] == row["why"] == ""
        np.testing.assert_allclose([float(row[c]) for c in model.classes], p, atol=1e-6)


@pytest.mark.full
def test_a_table_of_labels_is_written_as_parquet(evaluated, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    model, _, _, probabilities = evaluated
    found = answers.judge_labels(probabilities, model.thresholds)
    columns = tables.predictions(
        [str(i) for i in range(40)], model.classes, probabilities, **answers.columns(found)
    )
    tables.write(tmp_path / "p.parquet", columns)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table["mass"].to_pylist() == pytest.approx(probabilities[:, 4].tolist())
    assert table["confidence"].null_count == 40


def test_answers_have_every_label_above_its_threshold():
    p = np.array([[0.2, 0.6], [0.1, 0.3]], np.float32)
    found = answers.judge_labels(p, (0.15, 0.5))
    assert found.has.tolist() == [[True, True], [False, False]]
    assert answers.judge_labels(p, ()).has.tolist() == [[False, True], [False, False]]
    assert found.predicted.tolist() == [1, 1]
    assert not found.refer.any()
    assert answers.remarks(found) == []


@pytest.mark.full
def test_lines_name_mean_figures_and_undefined_labels(evaluated):
    _, _, result, _ = evaluated
    first, second = evaluator.lines("test", result)
    assert first.startswith(f"test: mean AUC {result['auc_ovr']:.4f} (95 % interval ")
    assert "raw weights: mean AUC" in first
    assert second.startswith("test: at the thresholds fitted on validation: F1 ")
    undefined = {**result["per_class"], "hernia": {"auc": None}}
    lines = evaluator.lines("test", {**result, "per_class": undefined})
    assert "no area under the ROC curve of hernia, which no image has" in lines[-1]


@pytest.mark.full
def test_an_ensemble_averages_probabilities_and_thresholds(evaluated, untrained, validation):
    model, folder, _, _ = evaluated
    both = ensemble.Ensemble({folder / "a": model, folder / "b": model.at(None)})
    images = validation.images[:4]
    np.testing.assert_allclose(both.predict(images), model.predict(images), atol=1e-6)
    assert both.thresholds == pytest.approx(model.thresholds)
    assert both.answer(images).has.shape == (4, 14)
    assert ensemble.Ensemble({folder / "a": model, folder / "b": untrained}).thresholds == ()


@pytest.mark.full
def test_without_validation_nothing_is_fitted(untrained, validation, tmp_path):
    model = untrained.at(None)
    thresholds.write(tmp_path, model.classes, [0.5] * 14)
    uncertainty.fit_run(model, tmp_path, validation, None)
    assert (model.calibrations, model.thresholds) == ({}, ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ['{"a": 0.5}', '{"a": 0.5, "b": 2}', "[1, 2]", '{"a": 0.5, "c": 1}']
)
def test_damaged_thresholds_are_one_line(tmp_path, content):
    (tmp_path / thresholds.FILE).write_text(content)
    with pytest.raises(UserError, match=r"expected a threshold in 0..1 for each label"):
        thresholds.load(tmp_path, ("a", "b"))


@pytest.mark.full
def test_images_of_the_other_kind_are_one_line(evaluated, chest, tmp_path, trained):
    cells = sources.load("synthetic:8", 28)
    with pytest.raises(UserError, match="have one class each, expected any number of labels"):
        evaluator.evaluate(evaluated[0], cells, tmp_path, tta=None, source=SOURCE)
    labelled = bloodjax.load_dataset(chest, 28)
    with pytest.raises(UserError, match="have any number of labels, expected one class each"):
        evaluator.evaluate(classifier.load(trained), labelled, tmp_path, tta=None, source=SOURCE)


@pytest.mark.full
def test_the_classes_of_a_site_are_refused(evaluated):
    with pytest.raises(UserError, match="--classes: the run's images have any number of labels"):
        evaluated[0].restrict(("mass",))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.sampling", "balanced"),
        ("loss.class_weights", "effective"),
        ("loss.logit_adjustment", 1.0),
        ("distill.workdir", "teacher"),
        ("folds", 3),
        ("evaluation.conformal", 0.1),
    ],
)
def test_what_needs_one_class_for_each_image_is_refused(make_config, key, value):
    with pytest.raises(UserError, match=rf"config.{key} is .*with images of several labels"):
        make_config(**{"data.task": "multi-label", key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.consistency": 1.0, "augment": "d4|augmix()"},
        {"evaluation.tta": "d4", "evaluation.tta_select": "greedy"},
    ],
)
def test_losses_and_weights_of_views_for_one_class_are_refused(make_config, changes):
    with pytest.raises(UserError, match="with images of several labels"):
        make_config(**{"data.task": "multi-label", **changes})


def test_commands_that_need_one_class_say_so(config, make_config):
    with pytest.raises(UserError, match=r"^adapt: the run's images have any number of labels"):
        multi_label.refuse(config, "adapt")
    multi_label.refuse(make_config(), "adapt")


@pytest.fixture(scope="module")
def trained_on_chest(chest, make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "chest"
    changes = {
        "augment": "d4|mixup(0.2, p=0.5)|cutmix(1.0, p=0.5)",
        "early_stopping.metric": "auc",
        "ema": 0.9,
    }
    config = make_config(
        **{
            "data.train": str(chest),
            "data.image_size": 28,
            "data.clean": "report",
            "evaluation.bootstrap": 5,
            "evaluation.tta": "flip",
            "loss.label_smoothing": 0.05,
            "soup": 2,
            **changes,
        }
    )
    return config, workdir, run.train(config, workdir)


@pytest.mark.full
def test_a_run_trains_reports_and_resumes(trained_on_chest, chest):
    config, workdir, found = trained_on_chest
    assert set(found) == {"test", "validation"}
    stored = config_lib.load_json(workdir / "config.json")
    assert stored.data.task == "multi-label"
    assert run.train(config, workdir) == found  # the same config, in which task is auto
    page = (workdir / "report/index.html").read_text("utf-8")
    assert all(name in page for name in bloodjax.load_dataset(chest, 28).classes)
    assert "Mean average precision" in page
    assert not (workdir / "baseline.json").exists()
    model = bloodjax.load(workdir)
    assert len(model.thresholds) == 14
    again = bloodjax.evaluate(workdir, chest)
    assert again["auc_ovr"] == pytest.approx(found["test"]["auc_ovr"])


@pytest.mark.full
def test_commands_refuse_the_run_in_one_line(trained_on_chest, tmp_path, chest):
    from bloodjax.adaptation import adapter
    from bloodjax.evaluation import scoring, teacher
    from bloodjax.exporting import bundle
    from bloodjax.serving import limits, service

    _, workdir, _ = trained_on_chest
    refused = {
        "adapt": lambda: adapter.adapt(workdir, str(chest), tmp_path / "out"),
        "export": lambda: bundle.collect(workdir),
        "serve": lambda: service.load([workdir], limits.Limits(), tta=None, neighbours_of=0),
        "--corruptions": lambda: scoring.evaluate_runs(
            [workdir], str(chest), None, None, None, corruptions="all"
        ),
        "--tta_select": lambda: scoring.evaluate_runs(
            [workdir], str(chest), None, "d4", None, tta_select="greedy"
        ),
        str(workdir): lambda: teacher.load([str(workdir)], tmp_path),
    }
    for what, call in refused.items():
        with pytest.raises(UserError, match="any number of labels") as error:
            call()
        assert what in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"data.on_device": "never", "steps_per_call": 2}, {"parallel": "pmap"}, {"sharding": "fsdp"}],
)
def test_streams_and_devices_give_the_same_figures(trained_on_chest, tmp_path, changes):
    _, workdir, found = trained_on_chest
    content = config_lib.load_json(workdir / "config.json").to_dict()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value
    other = run.train(config_lib.validate(content), tmp_path / "run")
    for split, result in found.items():
        for name in ("auc_ovr", "nll", "f1_macro"):
            assert other[split][name] == pytest.approx(result[name], abs=2e-3)
