import dataclasses

import numpy as np
import pytest

from bloodjax.adaptation import fine_tuning, labelled, labelled_methods
from bloodjax.adaptation.labelled_methods import METHODS
from bloodjax.data import sources
from bloodjax.evaluation import classifier
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.site import Site
from bloodjax.metrics.calibration import Calibration


@pytest.fixture(scope="module")
def model(trained):
    return classifier.load(trained)


@pytest.fixture(scope="module")
def cells(model):
    """Cells of a site where the red and the blue channel are exchanged, and of home."""
    home = sources.load("synthetic:96", 32, seed=3)
    there = dataclasses.replace(home, images=np.ascontiguousarray(home.images[..., ::-1]))
    return there, home


def fit(model, cells, count, methods, **options):
    there, home = cells
    index = np.concatenate([np.flatnonzero(there.labels == i)[:count] for i in range(8)])
    return labelled.fit(
        model, there.take(index), home, home.take(np.arange(40)), 0, methods=methods, **options
    )


class TestFolds:
    def test_every_class_keeps_a_cell_to_learn_from(self):
        labels = np.repeat(np.arange(4), (1, 2, 5, 9))
        found = labelled.folds(labels, seed=1)
        assert found[0] == -1, "the only cell of its class"
        assert sorted(found[1:3]) in ([0, 1], [0, 2], [1, 2])
        for label in (2, 3):
            counts = np.bincount(found[labels == label], minlength=3)
            assert counts.max() - counts.min() <= 1
        np.testing.assert_array_equal(found, labelled.folds(labels, seed=1))

    def test_cells_of_one_each_are_in_none(self):
        assert (labelled.folds(np.arange(5), seed=0) == -1).all()


class TestFit:
    def test_the_last_layer_learns_the_site(self, model, cells):
        there, home = cells
        found = fit(model, cells, 6, ("temperature", "vector", "head"))
        figures = found.cross_validation["methods"]
        assert found.method == "head", figures
        assert figures["head"]["accuracy"] > figures["temperature"]["accuracy"] + 0.1
        assert (found.cross_validation["n"], found.cross_validation["folds"]) == (48, 3)
        adapted = classifier.Classifier(model.config, model.classes, found.variables, 0)
        accuracy = [
            np.mean(one.predict(there.images, "none").argmax(axis=1) == there.labels)
            for one in (model, adapted)
        ]
        assert accuracy[1] > accuracy[0] + 0.1
        after = np.mean(
            adapted.predict(home.images[:40], "none").argmax(axis=1) == home.labels[:40]
        )
        assert found.home["after"] == pytest.approx(after)
        assert found.home["n"] == 40

    def test_of_methods_that_are_as_good_the_simplest_is_taken(self, model, cells):
        _, home = cells
        found = fit(model, (home, home), 3, ("temperature", "vector", "head"))
        figures = found.cross_validation["methods"]
        assert all(figures[name]["worse"] >= 0 for name in figures)
        assert figures[found.method]["worse"] <= figures[found.method]["se"]
        for name in METHODS:
            if name == found.method:
                break
            assert figures[name]["worse"] > figures[name]["se"]

    def test_one_cell_of_each_class_cannot_be_checked(self, model, cells):
        found = fit(model, cells, 1, ("temperature", "vector", "head"))
        assert (found.method, found.cross_validation["n"]) == ("head", 0)
        assert "no class has two" in found.cross_validation["why"]
        assert found.calibration.keys() == {"default", "none"}

    def test_cells_of_one_class_change_no_weights(self, model, cells):
        there, home = cells
        one = there.take(np.flatnonzero(there.labels == 2))
        found = labelled.fit(model, one, home, None, 0)
        assert (found.method, found.variables, found.home) == ("temperature", None, {})

    def test_only_classes_that_can_occur_are_compared(self, model, cells):
        there, home = cells
        names = (model.classes[0], model.classes[1])
        index = np.flatnonzero(there.labels < 2)
        restricted = classifier.Classifier(
            model.config, model.classes, model.predictor.variables, 0, site=Site(classes=names)
        )
        found = labelled.fit(restricted, there.take(index), home, None, 0, methods=("temperature",))
        own = model.predict(there.take(index).images, "d4", calibrated=False)[:, :2]
        hit = own.argmax(axis=1) == there.labels[index]
        recall = np.mean([hit[there.labels[index] == label].mean() for label in (0, 1)])
        assert found.cross_validation["methods"]["temperature"]["accuracy"] == pytest.approx(recall)

    def test_cells_of_home_keep_their_own_look(self, model, cells):
        """What makes the site's cells look like home's would spoil home's own."""
        _, home = cells
        site = Site(appearance=Appearance(background=(120.0,) * 3, target=(240.0,) * 3))
        moved = classifier.Classifier(
            model.config, model.classes, model.predictor.variables, 0, site=site
        )
        found = fit(moved, cells, 3, ("head",))
        new = classifier.Classifier(model.config, model.classes, found.variables, 0)
        for one, name in ((model, "before"), (new, "after")):
            right = one.predict(home.images[:40], "none").argmax(axis=1) == home.labels[:40]
            assert found.home[name] == pytest.approx(right.mean())

    @pytest.mark.full
    def test_a_killed_call_continues_with_the_next_fold(self, model, cells, tmp_path, monkeypatch):
        monkeypatch.setattr(fine_tuning, "_STEPS", 2)
        trained, train = [], fine_tuning.FineTuning.train

        def counted(self, known, name):
            trained.append(name)
            if len(trained) == 2:
                raise KeyboardInterrupt
            return train(self, known, name)

        monkeypatch.setattr(fine_tuning.FineTuning, "train", counted)
        folder = tmp_path / "progress"
        with pytest.raises(KeyboardInterrupt):
            fit(model, cells, 3, ("layers",), progress=folder)
        assert len(list(folder.iterdir())) == 1
        found = fit(model, cells, 3, ("layers",), progress=folder)
        assert len(trained) == 2 + 3, "two of three folds, and all cells"
        again = fit(model, cells, 3, ("layers",))
        assert found.cross_validation == again.cross_validation
        assert found.method == "layers"


class TestCalibrations:
    def test_few_cells_leave_the_temperature_near_that_at_home(self):
        setting = object.__new__(labelled_methods.Setting)  # only its classes are read
        object.__setattr__(setting, "possible", np.ones(2, bool))
        # Right in half of the cases with a confidence of 0.99.
        both = np.tile([0.99, 0.01], (400, 2, 1))
        labels = np.arange(400) % 2
        home = {"default": 0.5, "none": 0.6}

        def temperature(n):
            found = labelled._calibrations(setting, "head", both[:n], labels[:n], home)
            assert found["none"].temperature > found["default"].temperature
            return found["default"].temperature

        assert labelled._calibrations(setting, "head", None, labels[:0], home) == {
            name: Calibration("temperature", value) for name, value in home.items()
        }
        assert 0.5 < temperature(4) < temperature(40) < temperature(400)


class TestOrder:
    def test_half_of_each_batch_are_cells_of_the_site(self):
        site, home = np.array([0, 2, 5]), np.arange(7, 57)
        order = fine_tuning._order(site, home, 8, seed=0).reshape(fine_tuning._STEPS, 8)
        assert (np.isin(order, site).sum(axis=1) == 4).all()
        assert (order.max(), order.dtype) == (56, np.int32)
        counts = np.bincount(order[order < 7])[site]
        assert counts.max() - counts.min() <= 1, "all cells of the site are equally frequent"
