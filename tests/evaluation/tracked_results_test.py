import json
import shutil

import numpy as np

import bloodjax
from bloodjax import config as config_lib
from bloodjax.evaluation import tracked_results
from bloodjax.tracking import TrackerGroup


class Group(TrackerGroup):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.results, self.files = [], []

    def log_results(self, values, step):
        self.results.append((dict(values), step))

    def log_report(self, path):
        self.files.append(path)

    def log_model(self, folder):
        self.files.append(folder)


def logged(trained, tmp_path, **changes):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config = config_lib.load_json(workdir / "config.json").to_dict()
    config |= {"trackers": ("mlflow",)} | changes
    metrics = json.loads((workdir / "evaluate" / "test" / "metrics.json").read_text())
    trackers = Group()
    tracked_results.log(config_lib.validate(config), workdir, {"test": metrics}, trackers)
    return workdir, metrics, trackers


def test_trackers_get_figures_report_and_a_model_to_load(trained, tmp_path):
    workdir, metrics, trackers = logged(trained, tmp_path)
    ((figures, step),) = trackers.results
    assert step == metrics["step"]
    assert figures["evaluate/test/accuracy"] == metrics["accuracy"]
    assert figures["evaluate/test/nll"] == metrics["nll"]
    assert not {"evaluate/test/n", "evaluate/test/step"} & set(figures)
    assert trackers.files == [workdir / "report" / "index.html", workdir / "tracking" / "model"]
    model, original = bloodjax.load(trackers.files[1]), bloodjax.load(trained)
    assert model.classes == original.classes
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(model.predict(images), original.predict(images))


def test_the_model_can_be_left_out(trained, tmp_path):
    workdir, _, trackers = logged(trained, tmp_path, tracking={"model": False})
    assert trackers.files == [workdir / "report" / "index.html"]
    assert not (workdir / "tracking").exists()


def test_a_run_without_trackers_writes_nothing(trained, tmp_path):
    workdir, _, trackers = logged(trained, tmp_path, trackers=("tensorboard",))
    assert trackers.results == trackers.files == []
    assert not (workdir / "tracking").exists()
