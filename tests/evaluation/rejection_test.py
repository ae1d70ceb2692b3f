"""The detector of images unlike the training images."""

import dataclasses
import json
import types

import numpy as np
import pytest

from bloodjax.corruptions import unfamiliar
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import rejection
from bloodjax.metrics import novelty

CLASSES = render.CLASSES


class Colours:
    """Stands for a classifier: its features are quantiles of an image's colours."""

    def __init__(self, method="auto", rate=0.1):
        options = types.SimpleNamespace(rejection=method, rejection_rate=rate)
        self.config = types.SimpleNamespace(evaluation=options, seed=0)
        self.classes, self.detector, self.broken = CLASSES, None, False

    def describe_fully(self, images):
        pixels = np.sort(np.asarray(images).reshape(len(images), -1, 3), axis=1)
        features = np.float32(pixels[:, :: pixels.shape[1] // 16].reshape(len(images), -1)) / 255
        if self.broken:
            features[0] = np.nan
        logits = features[:, : len(self.classes)]
        return novelty.Description(features, logits, rejection.appearance(images))


@pytest.fixture(scope="module")
def splits():
    cells = render.render_dataset(240, 16, seed=1)
    return cells.take(np.arange(160)), cells.take(np.arange(160, 240))


@pytest.fixture(scope="module")
def fitted(splits, tmp_path_factory):
    """A classifier with the detector that "auto" chose, the folder with its files, and the log."""
    folder, model, lines = tmp_path_factory.mktemp("run"), Colours(rate=0.05), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection.console, "log_info", lines.append)
        rejection.fit_run(model, folder, *splits)
    return model, folder, lines


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(rejection.console, "log_info", lines.append)
    return lines


def test_methods_are_compared_on_held_out_kinds(fitted):
    model, _, said = fitted
    detector = model.detector
    assert set(detector.comparison) == set(novelty.METHODS)
    means = {name: found["mean"] for name, found in detector.comparison.items()}
    assert means[detector.method] >= max(means.values()) - 0.01
    for found in detector.comparison.values():
        each = found["each"]
        assert list(each["kinds"]) == list(unfamiliar.KINDS)
        assert set(each["classes"]) == set(CLASSES)
        assert found["kinds"] == pytest.approx(np.mean(list(each["kinds"].values())))
        assert found["mean"] == pytest.approx((found["kinds"] + found["classes"]) / 2)
    assert len(said) == 1
    assert f": {detector.method}, AUROC {means[detector.method]:.4f} on held-out" in said[0]


@pytest.mark.parametrize(
    ("means", "kept"),
    [
        ({"combined": 0.90, "knn": 0.905, "energy": 0.7}, "combined"),
        ({"combined": 0.90, "knn": 0.915, "energy": 0.92}, "energy"),
        ({"combined": 0.90, "knn": 0.8, "energy": 0.7}, "combined"),
    ],
)
def test_another_method_is_kept_if_it_is_clearly_better(splits, monkeypatch, means, kept):
    compared = {name: {"mean": mean} for name, mean in means.items()}
    monkeypatch.setattr(rejection, "_compare", lambda *args: compared)
    model = Colours()
    _, known, validation = rejection.describe_splits(model, *splits)
    found = rejection.fit(known, validation, {}, CLASSES, rejection.AUTO, 0.05)
    assert (found.method, found.comparison) == (kept, compared)


def test_the_threshold_rejects_the_rate_of_validation_and_more_of_what_is_no_cell(splits, fitted):
    model, detector = fitted[0], fitted[0].detector
    usual = detector.score(model.describe_fully(splits[1].images))
    assert (usual > detector.threshold).sum() == 4  # 5 % of 80
    drawing = np.repeat(render.cartoon(16)[None], 2, axis=0)
    assert (detector.score(model.describe_fully(drawing)) > detector.threshold).all()


def test_what_is_written_is_read(splits, fitted):
    model, folder, _ = fitted
    read = rejection.load(folder)
    assert dataclasses.replace(read, arrays={}) == dataclasses.replace(model.detector, arrays={})
    output = model.describe_fully(splits[1].images)
    np.testing.assert_array_equal(read.score(output), model.detector.score(output))
    assert read.summary() == json.loads(json.dumps(model.detector.summary()))
    assert "each" not in read.summary()["comparison"]["knn"]


@pytest.mark.full
def test_a_fit_is_deterministic(splits, fitted, tmp_path):
    folder = fitted[1]
    rejection.fit_run(Colours(rate=0.05), tmp_path, *splits)
    for name in (rejection.FILE, rejection.ARRAYS_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("method", list(novelty.METHODS))
def test_a_method_that_the_config_names_is_not_compared(splits, tmp_path, said, method):
    model = Colours(method)
    rejection.fit_run(model, tmp_path, *splits)
    assert model.detector.method == method
    assert model.detector.comparison == {}
    assert rejection.load(tmp_path).method == method
    assert said == [
        f"images unlike the training images: {method}, rejects 10 % of 80 validation images"
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no validation", "no validation split: images unlike the training images are not detect"),
        ("not finite", "the network's output is not finite for 1 of 160 training images"),
        ("none", None),
    ],
)
def test_a_run_without_a_detector_keeps_no_earlier_one(splits, tmp_path, said, change, reason):
    assert rejection.load(tmp_path) is None
    rejection.fit_run(Colours("energy"), tmp_path, *splits)
    assert len(list(tmp_path.iterdir())) == 2
    said.clear()
    model = Colours("none" if change == "none" else "energy")
    model.detector, model.broken = rejection.load(tmp_path), change == "not finite"
    train, validation = splits
    rejection.fit_run(model, tmp_path, train, None if change == "no validation" else validation)
    assert model.detector is None
    assert list(tmp_path.iterdir()) == []
    assert len(said) == (reason is not None)
    assert reason is None or reason in said[0]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (np.arange(8), [0]),  # one image of each class, and one of validation
        ([0], [0, 1]),  # classes of validation that training lacks
        (np.arange(0, 160, 8), np.arange(0, 80, 8)),  # one class
    ],
)
def test_few_images(splits, tmp_path, train, validation):
    model = Colours()
    train, validation = (np.asarray(chosen) for chosen in (train, validation))
    rejection.fit_run(model, tmp_path, splits[0].take(train), splits[1].take(validation))
    assert np.isfinite(model.detector.threshold)
    scores = model.detector.score(model.describe_fully(splits[1].take(validation).images))
    assert (scores <= model.detector.threshold).sum() >= len(validation) * 0.9
    assert rejection.load(tmp_path).method == model.detector.method


def test_constant_features(splits, tmp_path):
    model = Colours()
    model.describe_fully = lambda images: novelty.Description(
        np.ones((len(images), 5), np.float32),
        np.zeros((len(images), len(CLASSES)), np.float32),
        np.ones((len(images), 3), np.float32),
    )
    rejection.fit_run(model, tmp_path, *splits)
    scores = model.detector.score(model.describe_fully(splits[1].images))
    assert not (scores > model.detector.threshold).any()


def test_training_images_are_taken_equally_from_the_classes():
    labels = np.repeat([0, 1, 2], [1000, 50, 3])
    chosen = rejection._balanced(labels, 100, 0)
    assert np.bincount(labels[chosen]).tolist() == [49, 48, 3]
    assert len(np.unique(chosen)) == 100
    assert (np.diff(chosen) > 0).all()
    assert rejection._balanced(labels, 5000, 0).tolist() == list(range(1053))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("rejection.json", lambda b: b[:20], r"rejection\.json: is damaged .*expected a detector"),
        ("rejection.json", lambda b: b"[]", r"rejection\.json: is damaged "),
        ("rejection.json", lambda b: b.replace(b'"rate"', b'"ra"'), r"rejection\.json: is damaged"),
        ("rejection.json", lambda b: b.replace(b"knn", b"nnk"), r"damaged .*method 'nnk'"),
        ("rejection.json", lambda b: b.replace(b'old": ', b'old": 1e999, "x":'), r"threshold inf"),
        ("rejection.json", lambda b: b.replace(b'old": ', b'old": null, "x":'), "is damaged"),
        ("rejection.npz", lambda b: b[:-1], r"rejection\.npz: its SHA-256 differs, expected the"),
        ("rejection.npz", lambda b: None, r"rejection\.npz: No such file .*delete rejection\.json"),
    ],
)
def test_a_damaged_file_is_one_line(splits, tmp_path, name, damage, message):
    rejection.fit_run(Colours("knn"), tmp_path, *splits)
    damaged = damage((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    if damaged is not None:
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(UserError, match=message) as error:
        rejection.load(tmp_path)
    assert "\n" not in str(error.value)
