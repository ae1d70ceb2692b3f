import json
import pathlib
import shutil

import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import metrics, run
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import classifier, ensemble, scoring
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble


@pytest.fixture(scope="module")
def other(make_config, tmp_path_factory):
    """A run of another network and image size, on the same images and splits."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    config = make_config(
        **{
            "data.image_size": 24,
            "model.head.hidden": (8,),
            "phases.finetune.epochs": 0,
            "evaluation.tta": "flip",
        }
    )
    run.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def model(trained, other):
    return bloodjax.load([other, trained])


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(19, 32, seed=1)


def member(config):
    """A classifier without a network."""
    classifier = Classifier.__new__(Classifier)
    classifier.classes, classifier.config, classifier.baseline = ("x",), config, None
    classifier.site = None
    return classifier


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"data.fit": "crop"}, {"data.fit": "pad"}], "b: has data.fit pad; expected that of a"),
        (
            [{"data.scale": "10"}, {"data.scale": "12"}],
            r"different scales \(10, 12\), expected one",
        ),
    ],
)
def test_members_read_images_alike(make_config, values, message):
    members = {
        pathlib.Path(name): member(make_config(**changes))
        for name, changes in zip("ab", values, strict=True)
    }
    with pytest.raises(UserError, match=message):
        Ensemble(members)


def test_an_ensemble_has_the_scale_of_a_member(make_config):
    members = {
        pathlib.Path(name): member(make_config(**{"data.scale": scale}))
        for name, scale in {"a": "", "b": "12"}.items()
    }
    assert config_lib.read_options(Ensemble(members).config).bits == "12"


def test_load_of_one_run_is_its_classifier(trained):
    assert isinstance(ensemble.load(trained), Classifier)
    assert isinstance(ensemble.load([str(trained)]), Classifier)


@pytest.mark.full
def test_predicts_the_mean_of_the_members(model, trained, other, cells):
    assert isinstance(model, Ensemble)
    assert model.classes == render.CLASSES
    assert model.config.data.image_size == 32
    each = [classifier.load(folder).predict(cells.images, "d4") for folder in (other, trained)]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(model.predict(cells.images, "d4"), np.mean(each, axis=0), atol=1e-6)
    members = model.predict_members(cells.images, "d4")
    np.testing.assert_allclose(members[:, :, 0], each, atol=1e-6)
    plain = classifier.load(other).predict(cells.images, "none")
    np.testing.assert_allclose(members[0, :, 1], plain, atol=1e-6)


def test_each_member_has_its_own_views(model, trained, other, cells):
    assert model.tta == "flip, none"
    each = [
        classifier.load(other).predict(cells.images, "flip"),
        classifier.load(trained).predict(cells.images, "none"),
    ]
    np.testing.assert_allclose(model.predict(cells.images), np.mean(each, axis=0), atol=1e-6)


class _Bright(Classifier):
    """Says how bright the images are that it gets, which no frame may be cut out of twice."""

    def __init__(self, size):
        data = {"data.image_size": size, "data.fit": "64px"}
        self.config = config_lib.defaults()
        self.config.update_from_flattened_dict(data)
        self.classes, self.site, self.baseline = ("x",), None, None

    def predict(self, images, tta=None, calibrated=True):
        return self._squares(images).mean((1, 2))[:, :1] / 255

    def explain(self, images, classes=None, method=""):
        return [np.ones(np.shape(image)[:2], np.float32) for image in images], classes


def test_squares_of_the_ensembles_size_are_not_framed_again():
    both = Ensemble({pathlib.Path("small"): _Bright(16), pathlib.Path("large"): _Bright(32)})
    image = np.full((32, 32, 3), 255, np.uint8)
    image[8:24, 8:24] = 0
    other = np.full((64, 64, 3), 255, np.uint8)
    for images in (image[None], [image, other]):
        found = both.predict(images)
        assert found[0, 0] == pytest.approx(0.75, abs=0.01)  # not 1/4 or less, a part of the frame
        maps, _ = both.explain(images, np.zeros(len(images), int))
        assert [one.shape for one in maps] == [np.shape(one)[:2] for one in images]
        np.testing.assert_allclose(maps[0], 1, rtol=1e-6)
    with pytest.raises(UserError, match="expected uint8"):
        both.predict(np.zeros((2, 32, 32, 3)))


def test_metrics_are_those_of_each_member_alone(model, trained, other, cells):
    each = model.predict_members(cells.images)[:, :, 0]
    rows = model.member_metrics(each, cells.labels)
    assert [member["workdir"] for member in rows] == [str(other), str(trained)]
    for member, probabilities in zip(rows, each, strict=True):
        assert member["network"] == "simple_cnn"
        assert member.items() >= metrics.quick(probabilities, cells.labels).items()


def test_members_of_other_classes_are_refused(model, trained):
    first, second = model.members.values()
    shuffled = Classifier(second.config, second.classes[::-1], second.predictor.variables, 1)
    with pytest.raises(UserError, match=r"b: has the classes .*; expected those of a: "):
        Ensemble({pathlib.Path("a"): first, pathlib.Path("b"): shuffled})


def test_a_run_named_twice_is_refused(trained):
    with pytest.raises(UserError, match=r"run: is named twice"):
        ensemble.load([trained, str(trained)])


def test_a_run_by_two_paths_is_refused(trained, tmp_path):
    (tmp_path / "link").symlink_to(trained)
    with pytest.raises(UserError, match=r"run: is named twice"):
        ensemble.load([trained, tmp_path / "link"])


def test_no_run_is_refused():
    with pytest.raises(UserError, match=r"^no workdir is named"):
        ensemble.load([])


def test_images_that_any_member_was_trained_on_are_scored_apart(trained, other, tmp_path):
    cells = render.render_dataset(160, 32, seed=0)
    file = tmp_path / "copy.npz"
    np.savez(file, images=cells.images, labels=cells.labels, classes=np.array(cells.classes))
    result = scoring.evaluate_runs([other, trained], str(file), None, None, tmp_path / "out")
    parts = [json.loads((run / "splits.json").read_text())["parts"] for run in (other, trained)]
    seen = set(parts[0]["train"]) | set(parts[1]["train"])
    assert (result["n"], result["all"]["n"]) == (160 - len(seen), 160)
    assert result["source"]["trained_on"] == len(seen)


def test_fold_folders(trained, tmp_path):
    assert ensemble.fold_folders(trained) == [trained]
    assert ensemble.fold_folders(tmp_path) == [tmp_path]
    text = (trained / "config.json").read_text().replace('"folds": 0', '"folds": 3')
    (tmp_path / "config.json").write_text(text)
    assert ensemble.fold_folders(tmp_path) == [tmp_path / f"fold{i}" for i in range(3)]
    shutil.copytree(trained, tmp_path / "fold0")
    with pytest.raises(UserError, match="fold1: no run is here"):
        ensemble.load(tmp_path)
