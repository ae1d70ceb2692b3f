import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import run
from bloodjax.adaptation import adapted_run
from bloodjax.data import sources
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import classifier, model_folder, scoring
from bloodjax.evaluation.site import Site
from bloodjax.exporting import exporter, hub_folder
from bloodjax.training import saved_splits
from bloodjax.training.workdir import SavedRun, open_run

from ..trees import assert_trees_equal


def write(out, source, **content):
    """Makes an adapted run as the command does."""
    adapted_run.check(out, source)
    with adapted_run.create(out) as folder:
        adapted_run.fill(folder, source, **content)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def cells():
    """Labelled images that the tiny run was not trained on."""
    return sources.load("synthetic:24", 32, seed=5)


@pytest.fixture(scope="module")
def doubled(trained):
    """The variables of the tiny run with a head that is twice as confident."""
    variables = jax.device_get(classifier.load(trained).predictor.variables)
    head = variables["params"]["head"]
    return {
        **variables,
        "params": {**variables["params"], "head": jax.tree.map(lambda x: 2 * x, head)},
    }


@pytest.fixture(scope="module")
def adapted(trained, doubled, cells, tmp_path_factory):
    """The workdir of a run with new variables, a site and labelled images. Not to be changed."""
    out = tmp_path_factory.mktemp("adapted") / "there"
    names = classifier.load(trained).classes
    site = Site(classes=names[:5])
    labelled = cells.take(np.arange(6))
    about = {"site": {"source": "there", "n": 24}}
    write(out, trained, variables=doubled, site=site, about=about, labelled=labelled)
    return out


@pytest.mark.full
def test_the_run_of_old_weights_answers_as_before(trained, tmp_path, images):
    out = tmp_path / "there"
    write(out, trained, variables=None, site=None, about={"site": None})
    before, after = bloodjax.load(trained), bloodjax.load(out)
    np.testing.assert_array_equal(after.predict(images), before.predict(images))
    np.testing.assert_array_equal(after.distance(images), before.distance(images))
    assert (after.step, after.classes, after.referral) == (
        before.step,
        before.classes,
        before.referral,
    )
    assert json.loads((out / "adaptation.json").read_text()) == {"site": None}
    assert sorted(os.listdir(tmp_path)) == ["there"], "nothing temporary is left"


def test_a_link_that_leads_nowhere_is_left_out(trained, tmp_path):
    source = shutil.copytree(trained, tmp_path / "run")
    (source / "report/link").symlink_to(tmp_path / "gone")
    write(tmp_path / "there", source, variables=None, site=None, about={})
    assert (tmp_path / "there/report/index.html").is_file()
    assert not (tmp_path / "there/report/link").is_symlink()


def test_new_weights_are_those_of_the_run(adapted, doubled):
    model = classifier.load(adapted)
    assert_trees_equal(jax.device_get(model.predictor.variables), doubled)
    assert model.site == Site(classes=model.classes[:5])
    assert not model.is_calibrated
    assert (model.referral, model.detector) == (None, None)


def test_a_run_with_an_average_keeps_it(trained, doubled, tmp_path):
    source, out = shutil.copytree(trained, tmp_path / "run"), tmp_path / "there"
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"ema": 0.99}))
    with pytest.MonkeyPatch.context() as patch:
        # The tiny run kept no average.
        patch.setattr(SavedRun, "best_variables", lambda *_, **__: doubled)
        write(out, source, variables=None, site=None, about={})
    for which in ("best", "raw"):
        with open_run(out) as opened:
            model = classifier.from_run(opened, which)
        assert_trees_equal(jax.device_get(model.predictor.variables), doubled)


def test_the_labelled_images_count_as_trained_on(adapted, cells):
    model = classifier.load(adapted)

    def read_again(_):
        raise AssertionError("the images are of the run's size")

    mask, unknown = saved_splits.trained_on(
        {adapted: model.config}, model.classes, cells, model.config, read_again
    )
    assert mask.tolist() == [True] * 6 + [False] * 18
    assert not unknown


def test_an_adapted_run_is_adapted_again(adapted, cells, tmp_path):
    out = tmp_path / "third"
    labelled = cells.take(np.arange(4, 10))
    write(out, adapted, variables=None, site=None, about={}, labelled=labelled)
    model = classifier.load(out)
    mask, _ = saved_splits.trained_on(
        {out: model.config}, model.classes, cells, model.config, lambda _: cells
    )
    assert mask.sum() == 10, "the images of both adaptations"
    assert model.site is None


def test_training_does_not_replace_it(adapted, make_config):
    with pytest.raises(UserError, match=r"bloodjax adapt made.*another --workdir"):
        run.train(make_config(), adapted)


@pytest.mark.full
def test_it_is_evaluated_and_calibrated_by_its_own_splits(adapted, tmp_path):
    out = shutil.copytree(adapted, tmp_path / "there")
    scoring.calibrate_runs([out])
    assert classifier.load(out).is_calibrated
    with pytest.raises(UserError, match=r"expected only the classes .* or others in --classes"):
        scoring.evaluate_runs([out], "synthetic:160", "validation", None, None)
    everything = ",".join(classifier.load(out).classes)
    result = scoring.evaluate_runs(
        [out], "synthetic:160", "validation", None, None, classes=everything
    )
    saved = json.loads((out / "splits.json").read_text())
    assert result["n"] == len(saved["parts"]["validation"])
    assert len(list((out / "evaluate").glob("validation*/metrics.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_it_is_exported(adapted, file_format, tmp_path):
    if missing := exporter.missing_packages(file_format):
        pytest.skip(f"needs {missing}")
    out = tmp_path / f"model.{file_format}"
    exporter.export_run(adapted, file_format, out, calibrated=False)
    assert out.exists()


@pytest.mark.full
def test_its_folder_to_share_knows_the_labelled_images(adapted, cells, images, tmp_path):
    bundle = exporter.collect(adapted, "none", calibrated=False)
    hub_folder.write(bundle, adapted, tmp_path / "model", calibrated=False, formats=())
    model = model_folder.load(tmp_path / "model")
    expected = classifier.load(adapted).predict(images, "none")
    np.testing.assert_allclose(model.predict(images, "none"), expected, atol=1e-6)
    mask, _ = saved_splits.trained_on(
        {tmp_path / "model": model.config}, model.classes, cells, model.config, lambda _: cells
    )
    assert mask.sum() == 6


class TestACommand:
    def test_leaves_a_folder_that_the_next_one_continues(self, tmp_path):
        out = tmp_path / "there"

        def stop(folder):
            (folder / adapted_run.PROGRESS).mkdir()
            (folder / adapted_run.PROGRESS / "done.npz").write_bytes(b"done")
            raise Stopped("stopped", 15)

        with pytest.raises(Stopped):
            half_written(out, stop)
        assert not out.exists()
        with adapted_run.create(out) as folder:
            found = {path.name for path in folder.iterdir()}
            assert found == {"lock", adapted_run.PROGRESS}
            assert (folder / adapted_run.PROGRESS / "done.npz").read_bytes() == b"done"
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
        assert [path.name for path in out.iterdir()] == ["lock"]

    def test_keeps_a_second_one_out(self, tmp_path):
        def another(_):
            with pytest.raises(UserError, match="one process at a time"):
                half_written(tmp_path / "there", lambda _: None)

        half_written(tmp_path / "there", another)
        assert (tmp_path / "there" / "config.json").read_text() == "half"

    def test_leaves_nothing_after_an_error(self, tmp_path):
        def fail(_):
            raise UserError("wrong")

        with pytest.raises(UserError, match="wrong"):
            half_written(tmp_path / "there", fail)
        assert not list(tmp_path.iterdir())


def half_written(out, then):
    with adapted_run.create(out) as folder:
        (folder / "config.json").write_text("half")
        then(folder)


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (lambda source, out: out.mkdir(), "exists already, expected a new folder"),
        (lambda source, out: shutil.rmtree(out.parent), "there is no folder"),
        (lambda source, out: _with_folds(source), "has folds, expected one run, such as .*fold0"),
        (lambda source, out: _as_model_folder(source), "is an exported model"),
    ],
)
def test_a_mistake_is_one_line(prepare, line, trained, tmp_path):
    source, out = tmp_path / "run", tmp_path / "folder" / "there"
    source.mkdir()
    out.parent.mkdir()
    shutil.copyfile(trained / "config.json", source / "config.json")
    prepare(source, out)
    with pytest.raises(UserError, match=line) as caught:
        adapted_run.check(out, source)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run is here"):
        write(tmp_path / "there", tmp_path / "empty", variables=None, site=None, about={})
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def _with_folds(source: pathlib.Path) -> None:
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"folds": 3}))


def _as_model_folder(source: pathlib.Path) -> None:
    (source / "config.json").write_text(json.dumps({"library_name": "bloodjax"}))
