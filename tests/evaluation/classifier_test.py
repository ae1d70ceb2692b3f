import copy
import json
import shutil

import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax.augment import views
from bloodjax.data import images, lazy
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import classifier
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.site import Site


@pytest.fixture(scope="module")
def model(trained):
    return bloodjax.load(trained)


@pytest.mark.full
def test_load_gives_the_run_with_its_best_weights(model, trained):
    assert model.classes == render.CLASSES
    assert model.config == config_lib.load_json(trained / "config.json")
    assert (trained / "checkpoints" / str(model.step)).is_dir()
    assert model.baseline is not None


def test_predict_gives_probabilities(model):
    cells = render.render_dataset(19, 32, seed=1).images
    probabilities = model.predict(cells)
    assert probabilities.shape == (19, 8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.predict(cells[3:5]), probabilities[3:5], atol=1e-6)


def test_predict_resizes_as_in_training(model):
    large = render.render_dataset(8, 50, seed=1).images
    np.testing.assert_array_equal(model.predict(large), model.predict(images.resize(large, 32)))


def test_predict_averages_over_views(model):
    cells = render.render_dataset(8, 32, seed=1).images
    views = [np.rot90(cells, k, (1, 2)) for k in range(4)]
    views += [view[:, :, ::-1] for view in views]
    each = [model.predict(np.ascontiguousarray(v), "none", calibrated=False) for v in views]
    expected = np.mean(each, axis=0)
    found = model.predict(cells, "d4", calibrated=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(expected, model.predict(cells, calibrated=False), atol=1e-5)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: no run is here, .*config\.json"):
        classifier.load(tmp_path)


def test_a_run_without_a_checkpoint(trained, tmp_path):
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(UserError, match="no valid checkpoint yet"):
        classifier.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no valid checkpoint yet"):
        classifier.load(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "config.json"]
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_run_may_lack_a_baseline(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/baseline.json").unlink()
    assert bloodjax.load(str(tmp_path / "run")).baseline is None


@pytest.mark.full
def test_views_that_were_selected(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    cells = render.render_dataset(8, 32, seed=1).images
    chosen = {"flip_up_down": 0.75, "rotate_90": 0.25}
    content = {"views": "d4", "average": "probabilities", "weights": chosen}
    (tmp_path / "run/tta.json").write_text(json.dumps(content))
    model = bloodjax.load(tmp_path / "run")
    each = model.predict_views(cells, "d4")
    assert each.shape == (8, 8, 8)
    found = model.predict(cells, "d4", calibrated=False)
    np.testing.assert_allclose(each.mean(axis=0), found, atol=1e-6)
    names = list(views.named("d4"))
    expected = sum(w * each[names.index(name)] for name, w in chosen.items())
    found = model.predict(cells, "selected", calibrated=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model.tta == "none", "the config did not ask for a selection"


def test_unknown_views_and_none_selected(model):
    cells = render.render_dataset(8, 32, seed=1).images
    with pytest.raises(UserError, match=r"tta is 'd6', .*did you mean d4\?"):
        model.predict(cells, "d6")
    with pytest.raises(UserError, match=r"the run has no tta\.json"):
        model.predict(cells, "selected")
    with pytest.raises(UserError, match=r"the run has no tta\.json"):
        model.check_tta("selected")  # before images are read


def test_predict_takes_what_is_clear(model):
    cells = render.render_dataset(8, 32, seed=1).images[:5]
    expected = model.predict(cells)
    small = cells[1][:24, :24]
    found = model.predict([cells[0], small, cells[2, ..., 0]])
    assert found.shape == (3, 8)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(found[1:2], model.predict(small), atol=1e-6)
    rgba = np.concatenate([cells, np.full((5, 32, 32, 1), 255, np.uint8)], -1)
    np.testing.assert_allclose(model.predict(rgba), expected, atol=1e-6)
    for nothing in (cells[:0], []):
        assert model.predict(nothing).shape == (0, 8)
        assert model.predict_with_plain(nothing, "flip").shape == (0, 2, 8)


@pytest.mark.parametrize("convert", [np.uint16, np.int64, np.float32, bool])
def test_predict_refuses_other_values_in_one_line(model, convert):
    cells = render.render_dataset(8, 32, seed=1).images[:2]
    with pytest.raises(UserError, match=r"^images are \w+ \[2, 32, 32, 3\].*, expected uint8 .*$"):
        model.predict(cells.astype(convert))


# Halves the light. Applying it twice would show.
DARKER = Appearance((254.0, 254.0, 254.0), (127.0, 127.0, 127.0))


@pytest.fixture
def away(model):
    """The run at a site whose images are twice as bright."""
    away = copy.copy(model)
    away.site = Site(("ig", "monocyte", "platelet"), tuple(np.linspace(0.5, 2, 8)), DARKER)
    return away


@pytest.mark.full
def test_the_site_applies_once_to_images_and_probabilities(model, away):
    cells = render.render_dataset(9, 40, seed=1).images
    seen = Site(appearance=DARKER).prepare(images.resize(cells, 32))
    expected = away.site.adjust(model.predict(seen), model.classes)
    np.testing.assert_allclose(away.predict(cells), expected, atol=1e-6)
    assert set(away.answer(cells).predicted) <= {3, 5, 7}
    np.testing.assert_allclose(away.answer(cells).probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(away.answer(cells).distance, model.distance(seen), rtol=1e-5)
    raw = away.predict_with_plain(cells, calibrated=False)
    np.testing.assert_allclose(raw, model.predict_with_plain(seen, calibrated=False), atol=1e-6)
    np.testing.assert_allclose(away.calibrate(raw)[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(away.predict_with_plain(cells)[:, 0], expected, atol=1e-6)
    views = away.predict_views(cells, "flip")
    np.testing.assert_allclose(views, model.predict_views(seen, "flip"), atol=1e-6)
    np.testing.assert_allclose(away.describe(cells)[0], model.describe(seen)[0], rtol=1e-4)
    by_colour = model.baseline.predict(seen)
    np.testing.assert_allclose(
        away.baseline_predict(images.resize(cells, 32)),
        away.site.adjust(by_colour, model.classes),
        atol=1e-6,
    )
    shown, of = away.explain(images.resize(cells, 32), np.zeros(9, int))
    np.testing.assert_allclose(shown, model.explain(seen, of)[0], atol=1e-3)


def test_at_home_nothing_is_known_of_a_site(model, away):
    home = away.at_home()
    assert home.site is None
    assert home.predictor is model.predictor
    assert model.at_home() is model
    assert away.possible_classes == ("ig", "monocyte", "platelet")
    assert home.possible_classes == model.classes


def test_a_list_of_classes_replaces_that_of_the_site(model, away):
    cells = render.render_dataset(8, 32, seed=1).images
    ratios = away.site.share_ratio
    away.restrict(("basophil", "ig"))
    found = away.predict(cells)
    assert (found[:, [1, 2, 4, 5, 6, 7]] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert away.site == Site(("basophil", "ig"), ratios, DARKER)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["nope"], "'nope' is no class"),
        ([], "classes is empty"),
        (["ig", "ig"], "ig is listed twice"),
    ],
)
def test_what_is_no_class_cannot_occur(model, classes, message):
    with pytest.raises(UserError, match=message):
        model.at_home().restrict(classes)


def test_classes_may_be_listed_in_a_text(model):
    here = model.at(None)
    here.restrict("Monocyte,ig")
    assert here.possible_classes == ("ig", "monocyte")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([99, 0], r"classes\[0\] is 99, expected 0..7 \(basophil, "),
        ([0, -1], r"classes\[1\] is -1, expected"),
        (
            np.array([1.9, 0.0]),
            r"classes are float64 of shape \(2,\), expected the index of a class",
        ),
        (np.array(["1", "2"]), "expected the index of a class"),
        ([1, 2, 3], r"of shape \(3,\), expected .* of shape \(2,\)"),
        (np.array(1), r"of shape \(\), expected"),
    ],
)
def test_a_map_is_of_a_class_that_there_is(model, classes, message):
    cells = render.render_dataset(8, 32, seed=1).images[:2]
    with pytest.raises(UserError, match=message):
        model.explain(cells, classes)


def test_an_unknown_method_of_maps_is_one_line(model):
    with pytest.raises(UserError, match="method is 'x', expected one of integrated_cam, layercam"):
        model.explain(render.render_dataset(8, 32, seed=1).images[:2], [0, 1], "x")


def test_a_site_of_other_classes_is_one_line(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    Site(("granulocyte",)).write(tmp_path / "run")
    with pytest.raises(UserError, match=r"site\.json: is damaged \(ValueError: classes granulo"):
        bloodjax.load(tmp_path / "run")


def test_images_in_files_are_read_once_and_answered_as_in_memory(model, monkeypatch):
    monkeypatch.setattr(lazy, "AT_ONCE", 4)
    monkeypatch.setattr(lazy, "_PART_BYTES", 1)
    cells = render.render_dataset(10, 32, seed=1).images
    files = [images.encode_png(cell) for cell in cells]
    read = []

    def read_files(places):
        read.extend(places)
        return [files[i] for i in places]

    in_files = lazy.decode_lazily(read_files, len(files), 32, lambda i, error: error)
    found, expected = model.answer(in_files), model.answer(cells)
    assert read == list(range(10))
    assert found.why == expected.why
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-4)
