import json
import os
import signal

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from bloodjax.corruptions import alexnet_reference
from bloodjax.corruptions import registry as table
from bloodjax.data.synthetic import render
from bloodjax.errors import Stopped
from bloodjax.evaluation import classifier, robustness

# For AlexNet's own errors, both ratios are 1 by the package's definition.
ALEXNET = {
    name: dict.fromkeys(range(1, 6), error) for name, error in alexnet_reference.CORRUPTED.items()
}


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(40, 32, seed=2)


@pytest.fixture(scope="module")
def model(trained):
    return classifier.load(trained)


@pytest.fixture(scope="module")
def measured(model, cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    names = table.parse("bubble,jpeg_compression:1-2,dust", "x")
    return robustness.benchmark(model, cells, out, names=names, tta="none"), out


def test_the_errors_are_those_of_the_distorted_images(measured, model, cells):
    result, out = measured
    assert json.loads((out / "corruptions.json").read_text()) == result
    rows = result["corruptions"]
    assert list(rows) == ["jpeg_compression", "bubble", "dust"]
    assert list(rows["jpeg_compression"]["balanced_error"]) == ["1", "2"]

    def expected(images):
        predicted = model.predict(images, "none").argmax(axis=1)
        return 1 - balanced_accuracy_score(cells.labels, predicted)

    assert result["clean_balanced_error"] == pytest.approx(expected(cells.images))
    for severity in (1, 5):
        images = [
            table.distort(image, "bubble", severity, seed=0, image_name=name)
            for image, name in zip(cells.images, cells.names, strict=True)
        ]
        found = rows["bubble"]["balanced_error"][str(severity)]
        assert found == pytest.approx(expected(np.stack(images)))
    mean = np.mean(list(rows["bubble"]["balanced_error"].values()))
    assert rows["bubble"]["mean_balanced_error"] == pytest.approx(mean)


def test_what_the_threshold_of_the_run_does_under_each_distortion(measured, model, cells):
    result, _ = measured
    selective = result["selective"]
    assert selective["threshold"] == model.referral.threshold
    answers = model.answer(cells.images, "none")
    clean = selective["clean"]["0"]
    assert clean["coverage"] == pytest.approx(1 - answers.refer.mean())
    points = [p for name in result["corruptions"] for p in selective[name].values()]
    assert len(points) == 2 + 5 + 5
    assert selective["mean_coverage"] == pytest.approx(np.mean([p["coverage"] for p in points]))
    answered = sum(p["coverage"] for p in points)
    wrong = sum(p["coverage"] * (p["error"] or 0) for p in points)
    if answered:
        assert selective["mean_error"] == pytest.approx(wrong / answered)
    assert " of the distorted" in robustness.summary(result)


def test_ratios_only_where_alexnet_s_error_is_of_the_same_images(measured):
    result, _ = measured
    rows = result["corruptions"]
    mean, theirs = rows["bubble"]["mean_balanced_error"], alexnet_reference.CORRUPTED["bubble"]
    assert rows["bubble"]["be"] == pytest.approx(mean / theirs)
    clean = result["clean_balanced_error"]
    assert rows["bubble"]["rbe"] == pytest.approx(
        (mean - clean) / (theirs - alexnet_reference.CLEAN)
    )
    for name in ("jpeg_compression", "dust"):  # Lacks severities; is not in the benchmark.
        assert rows[name]["be"] is rows[name]["rbe"] is None
    assert result["BE"] is result["rBE"] is None


def test_alexnet_itself_has_ratios_of_one():
    result = robustness.relative(alexnet_reference.CLEAN, ALEXNET)
    assert result["BE"] == pytest.approx(1)
    assert result["rBE"] == pytest.approx(1)


def test_the_summaries_are_the_package_s():
    package = pytest.importorskip("medmnistc.eval", reason="needs medmnistc")
    rng = np.random.default_rng(0)
    errors = {name: dict(enumerate(rng.uniform(0, 1, 5).tolist(), 1)) for name in ALEXNET}
    result = robustness.relative(0.05, errors)
    evaluator = package.Evaluator("bloodmnist", [[0], [1]], list(ALEXNET), "", "", "multi-class")
    evaluator.clean_score = 0.05
    evaluator.corruption_errors = {name: list(row.values()) for name, row in errors.items()}
    evaluator.output_log = {}
    evaluator.populate_summary()
    theirs = evaluator.output_log
    for name, row in result["corruptions"].items():
        assert row["be"] == pytest.approx(theirs["be_scores"][name])
        assert row["rbe"] == pytest.approx(theirs["rbe_scores"][name])
        assert row["mean_balanced_error"] == pytest.approx(theirs["raw_scores"][name])
    assert result["BE"] == pytest.approx(theirs["metrics"]["be"])
    assert result["rBE"] == pytest.approx(theirs["metrics"]["rbe"])


def test_the_size_of_batches_makes_no_difference(measured, model, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "_AT_ONCE", 1)
    names = table.parse("bubble,jpeg_compression:1-2,dust", "x")
    assert robustness.benchmark(model, cells, tmp_path, names=names, tta="none") == measured[0]


def test_a_signal_ends_it_without_a_file(model, cells, tmp_path, monkeypatch):
    original = table.distort

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(table, "distort", interrupted)
    before, names = signal.getsignal(signal.SIGINT), {"dust": (1,)}
    # A second signal would end the process, so there is one image only.
    with pytest.raises(Stopped, match="were not written") as stopped:
        robustness.benchmark(model, cells.take(np.array([0])), tmp_path, names=names, tta="none")
    assert stopped.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())


def test_the_summary_is_one_line():
    result = robustness.relative(alexnet_reference.CLEAN, ALEXNET)
    line = robustness.summary(result)
    assert line.startswith("balanced error: clean 0.0184, distorted 0.1125 on average; worst under")
    assert "defocus_blur, 0.2240; BE 1.000, rBE 1.000" in line
    alone = robustness.relative(0.1, {"dust": {1: 0.3}})
    assert robustness.summary(alone).endswith("worst under dust, 0.3000")
