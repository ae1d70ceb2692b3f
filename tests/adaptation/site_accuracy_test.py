import copy

import numpy as np
import pytest

from bloodjax.adaptation import cell_finder, site_accuracy
from bloodjax.data.synthetic import render
from bloodjax.evaluation.site import Site


@pytest.fixture(scope="module")
def validation():
    return render.render_dataset(96, 48, seed=3)


@pytest.fixture(scope="module")
def site(validation):
    """Other cells, stained less, under a lamp with less blue light."""
    cells = render.render_dataset(48, 48, seed=8).images
    return np.rint(255 * (cells / 255) ** 0.6 * np.array([1, 0.95, 0.5])).astype(np.uint8)


class Colourist:
    """Knows every label of the images in their order, but only under a lamp as in training."""

    site = None

    def __init__(self, dataset):
        self.classes = self.possible_classes = dataset.classes
        self.labels = dataset.labels

    def at(self, site):
        other = copy.copy(self)
        other.site = site
        return other

    def predict(self, images):
        images = np.asarray(images)
        blue = np.median(images[..., 2], axis=(1, 2)) / np.median(images[..., 0], axis=(1, 2))
        rng = np.random.default_rng(0)
        n, labels = len(images), np.resize(self.labels, len(images))
        right = rng.random(n) < np.where(blue > 0.6, 0.98, 0.3)
        sure = np.clip(0.97 + rng.normal(0, 0.015, n), 0.6, 0.999)
        told = np.where(right, labels, (labels + 1) % len(self.classes))
        rest = (1 - sure) / (len(self.classes) - 1)
        probabilities = np.repeat(rest[:, None], len(self.classes), axis=1)
        probabilities[np.arange(n), told] = sure
        return probabilities


def test_a_fault_that_the_look_of_the_site_causes_is_found(validation, site):
    model = Colourist(validation)
    found = site_accuracy.estimate(model, site, model.predict(site), validation)
    assert abs(found.estimate - 0.3) < 0.15
    assert found.method.endswith("validation images with the look of the site")
    known = found.reference_accuracy
    assert known["validation"] > 0.9
    assert known["validation images with the look of the site"] < 0.5
    assert found.by_method["average confidence"] > 0.9
    assert model.site is None


def test_only_images_of_possible_classes_are_changed(validation, site):
    model = Colourist(validation)
    model.site, model.possible_classes = Site(("granulocyte",)), ("granulocyte",)
    found = site_accuracy.estimate(model, site, model.predict(site), validation)
    assert list(found.reference_accuracy) == ["validation"]


class Weak:
    """Guesses: right in a quarter of the cases, and a little surer of these."""

    def __init__(self, classes, possible, site=None):
        self.classes, self.possible_classes, self.site = classes, possible, site

    def at(self, site):
        return Weak(self.classes, self.possible_classes, site)

    def predict(self, images):
        pixels = np.asarray(images).reshape(len(images), -1)[:, : len(self.classes)]
        probabilities = 0.9 + 0.2 * (pixels / 255.0)
        if self.site:
            probabilities = probabilities * np.isin(self.classes, self.site.classes)
        return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_fewer_classes_make_a_weak_run_surer_and_not_better(validation):
    """Its confidence is 0.13 among eight classes, and 0.35 among three."""
    names = validation.classes[:3]
    there = validation.take(np.flatnonzero(validation.labels < 3))
    model = Weak(validation.classes, names, Site(names))
    probabilities = model.predict(there.images)
    truth = (probabilities.argmax(axis=1) == there.labels).mean()
    assert truth < 0.6
    found = site_accuracy.estimate(model, there.images, probabilities, validation)
    assert found.low <= truth <= found.high
    assert found.estimate < 0.8


def test_images_get_light_stain_and_size_of_the_site(validation, site):
    cells, rng = validation.images, np.random.default_rng(0)
    larger = np.asarray(site[:, 8:40, 8:40]).repeat(2, 1).repeat(2, 2)[:, 8:56, 8:56]
    alike = site_accuracy.with_look_of(larger, cells, rng)
    assert alike.shape == cells.shape
    assert alike.dtype == np.uint8
    wanted, before, after = (cell_finder.find(images) for images in (larger, cells, alike))

    def median(found, name):
        return np.nanmedian(getattr(found, name), axis=0)

    for name in ("background", "nucleus_density", "nucleus_diameter"):
        distance = [np.abs(median(x, name) - median(wanted, name)).max() for x in (before, after)]
        assert distance[1] < 0.5 * distance[0], name


def test_images_without_cells_are_no_error():
    empty = np.full((2, 16, 16, 3), 220, np.uint8)
    alike = site_accuracy.with_look_of(empty, empty, np.random.default_rng(0))
    np.testing.assert_allclose(alike, empty, atol=2)
