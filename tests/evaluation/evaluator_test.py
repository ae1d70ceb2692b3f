import csv
import io
import json
import shutil

import numpy as np
import pytest

from bloodjax import run
from bloodjax.data.synthetic import render
from bloodjax.evaluation import classifier, ensemble, evaluator, results, run_report

SOURCE = results.of_data("cells", "synthetic:24")

# Keys that scripts read from metrics.json.
KEYS = {
    *("n", "accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro"),
    *("auc_ovr", "nll", "ece", "brier", "precision_at_50", "recall_at_50"),
    *("ci95", "per_class", "confusion_matrix", "classes"),
}


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    model = classifier.load(trained)
    cells = render.render_dataset(24, 32, seed=2)
    out = tmp_path_factory.mktemp("evaluated") / "a/b"
    return (*evaluator.evaluate(model, cells, out, tta="flip", source=SOURCE), cells, out)


def test_metrics_json_has_every_key(evaluated):
    result, probabilities, cells, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == result
    assert result.keys() >= KEYS
    assert (result["n"], result["tta"]) == (24, "flip")
    assert result["accuracy"] == np.mean(probabilities.argmax(axis=1) == cells.labels)
    assert 0 <= result["baseline"]["accuracy"] <= 1
    low, high = result["ci95"]["accuracy"]
    assert low <= result["accuracy"] <= high


def test_predictions_csv_has_a_row_for_each_image(evaluated):
    _, probabilities, cells, out = evaluated
    table = rows((out / "predictions.csv").read_text())
    columns = ["name", "label", "predicted", "confidence", "refer", "why", *cells.classes]
    assert list(table[0]) == columns
    assert tuple(row["name"] for row in table) == cells.names
    assert [row["label"] for row in table] == [cells.classes[i] for i in cells.labels]
    numbers = np.array([[float(row[c]) for c in cells.classes] for row in table])
    np.testing.assert_allclose(numbers, probabilities, atol=1e-6)
    np.testing.assert_allclose(numbers.sum(axis=1), 1, atol=1e-5)
    best = [cells.classes[i] for i in probabilities.argmax(axis=1)]
    assert [row["predicted"] for row in table] == best


def test_finish_leaves_the_evaluation_of_each_part_and_a_report(trained):
    for part in ("test", "validation"):
        result = json.loads((trained / f"evaluate/{part}/metrics.json").read_text())
        names = json.loads((trained / "splits.json").read_text())["parts"][part]
        table = rows((trained / f"evaluate/{part}/predictions.csv").read_text())
        assert result["n"] == len(names)
        assert [row["name"] for row in table] == names
    page = (trained / "report/index.html").read_text(encoding="utf-8")
    assert all(name in page for name in render.CLASSES)


def test_summary_is_one_line():
    result = {"accuracy": 0.75, "ci95": {"accuracy": [0.5, 1.0]}, "n": 1234}
    line = "test: accuracy 0.7500 (95 % interval 0.5000 to 1.0000, n = 1,234)"
    assert evaluator.summary("test", result) == line
    assert evaluator.summary("test", result | {"baseline": {"accuracy": 0.5}}) == (
        line + "; colour histogram alone 0.5000"
    )


def test_versions_name_the_device():
    versions = run_report.versions()
    assert versions["device"].startswith("8 x cpu")
    assert {"bloodjax", "Python", "jax", "flax", "optax"} <= versions.keys()


def test_what_the_views_change_is_held_against_none(evaluated, trained):
    result, probabilities, cells, _ = evaluated
    effect, plain = result["tta_effect"], classifier.load(trained).predict(cells.images, "none")
    assert effect["accuracy"] == result["accuracy"]
    assert effect["accuracy_without"] == np.mean(plain.argmax(axis=1) == cells.labels)
    gained = (probabilities.argmax(axis=1) == cells.labels) & (plain.argmax(axis=1) != cells.labels)
    assert effect["mcnemar"]["gained"] == gained.sum()
    assert "views (flip) change" in evaluator.summary("test", result)


def test_without_views_there_is_no_effect(trained):
    assert "tta_effect" not in json.loads((trained / "evaluate/test/metrics.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("method", ["greedy", "weights"])
def test_finish_selects_views_on_validation_and_uses_them(make_config, tmp_path, method):
    config = make_config(
        **{
            "data.train": "synthetic:96",
            "phases.finetune.epochs": 0,
            "evaluation.tta": "flip",
            "evaluation.tta_average": "logits",
            "evaluation.tta_select": method,
            "ema": 0.9,
        }
    )
    results = run.train(config, tmp_path)
    content = json.loads((tmp_path / "tta.json").read_text())
    assert (content["views"], content["average"], content["select"]) == ("flip", "logits", method)
    assert content["n"] == results["validation"]["n"]
    assert content["nll"]["selected"] <= content["nll"]["image"] + 1e-6
    assert results["test"]["tta"] == "selected"
    assert results["test"]["beside"].keys() == {"raw weights"}
    before = results["validation"]["calibration"]["nll_before"]
    assert before == pytest.approx(content["nll"]["selected"], abs=1e-4)
    model = classifier.load(tmp_path)
    assert model.tta == "selected"
    assert dict(model.selected.weights) == content["weights"]
    assert "Test-time augmentation (selected)" in (tmp_path / "report/index.html").read_text(
        "utf-8"
    )


def test_an_ensemble_s_members_stand_beside_it(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    both = ensemble.load([trained, tmp_path / "copy"])
    cells = render.render_dataset(24, 32, seed=2)
    result, probabilities = evaluator.evaluate(
        both, cells, tmp_path / "out", tta=None, source=SOURCE
    )
    np.testing.assert_allclose(probabilities, classifier.load(trained).predict(cells.images))
    assert [member["workdir"] for member in result["members"]] == [
        str(trained),
        str(tmp_path / "copy"),
    ]
    assert result["members"][0]["accuracy"] == result["accuracy"]
    assert (result["step"], result["tta"]) == (None, "none")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == result
