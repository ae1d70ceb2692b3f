import dataclasses

import numpy as np
import pytest

from bloodjax.adaptation import site_promises
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.data.synthetic import render
from bloodjax.evaluation import classifier


@pytest.fixture(scope="module")
def validation():
    return render.render_dataset(48, 32, seed=3)


@pytest.fixture(scope="module")
def images():
    cells = render.render_dataset(24, 32, seed=9)
    return SiteImages(cells, np.full(24, 32.0), "cells")


def test_at_home_the_estimate_is_the_accuracy(trained, images, validation):
    model = classifier.load(trained)
    found = site_promises.accuracy("before", model, images, validation)
    truth = (model.answer(images.dataset.images).predicted == images.dataset.labels).mean()
    assert found["low"] <= truth <= found["high"]
    share = (model.distance(images.dataset.images) > model.detector.threshold).mean()
    assert found["unlike"] == share
    assert found["is_extrapolated"] == (share > 0.25)


def test_where_images_are_unlike_the_training_ones_no_promise_holds(trained, images, validation):
    model = classifier.load(trained)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    strange = SiteImages(dataclasses.replace(images.dataset, images=noise), images.sides, "noise")
    found = site_promises.referral(model, strange, validation)
    assert found["unlike"] > 0.9
    assert found["holds"] is False


def test_without_a_threshold_nothing_is_promised(trained, images, validation):
    model = classifier.load(trained)
    model.referral = None
    assert site_promises.referral(model, images, validation) is None


def test_without_validation_cells_of_its_classes_no_error_is_promised(trained):
    model = classifier.load(trained)
    model.restrict(["platelet"])
    cells = render.render_dataset(24, 32, seed=3)
    others = cells.take(cells.labels != cells.classes.index("platelet"))
    found = site_promises.referral(model, SiteImages(cells, np.full(24, 32.0), "cells"), others)
    assert (found["n"], found["estimated_error"]) == (0, None)
