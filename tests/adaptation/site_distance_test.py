import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from bloodjax.adaptation import site_distance
from bloodjax.adaptation.site_distance import DIFFERENT, FAR, LIKE, SiteDistance
from bloodjax.data.dataset import Dataset
from bloodjax.data.synthetic.render import render_dataset
from bloodjax.evaluation.rejection import Detector

TRAINING = render_dataset(96, 48, seed=1)
SITE = render_dataset(48, 48, seed=2).images


@dataclasses.dataclass
class Model:
    """A classifier whose detector scores images by their brightness."""

    detector: Detector | None = None

    def distance(self, images):
        return None if self.detector is None else np.asarray(images).mean((1, 2, 3))


PLAIN = Model()


def measured(images, model=PLAIN, **kwargs):
    return site_distance.measure(model, images, TRAINING, **kwargs)


def by_name(distance):
    return {x.name: x for x in (*distance.measures, *distance.shares)}


def changed(density):
    """The site's images with another optical density, a function of theirs."""
    return np.clip(255 * np.exp(density(-np.log((SITE + 1.0) / 256))), 0, 255).astype(np.uint8)


def test_images_like_the_training_images_give_no_sentence():
    distance = measured(SITE)
    assert {x.state for x in (*distance.measures, *distance.shares)} == {LIKE}
    assert distance.sentences == []
    assert (distance.n, distance.n_training) == (48, 96)
    assert len(distance.measures) == 11


@pytest.mark.parametrize(
    ("name", "images", "state", "words"),
    [
        ("background_blue", SITE * np.array([0.75, 0.85, 1.0]), FAR, "background is bluer"),
        ("background_blue", SITE * np.array([1.0, 0.9, 0.7]), FAR, "background is yellower"),
        ("background_green", SITE * np.array([0.85, 1.0, 0.85]), FAR, "background is greener"),
        ("background_brightness", SITE * 0.7, FAR, "background is darker"),
        ("nucleus_density", changed(lambda d: -0.35 * d), FAR, "Nuclei are paler"),
        ("cell_density", changed(lambda d: -1.6 * d), FAR, "Cells are darker"),
        ("sharpness", ndimage.gaussian_filter(SITE, (0, 1.5, 1.5, 0)), FAR, "less sharp"),
        ("noise", SITE + np.random.default_rng(0).normal(0, 12, SITE.shape), FAR, "more noise"),
    ],
)
def test_what_differs_is_put_into_words(name, images, state, words):
    found = by_name(measured(np.clip(images, 0, 255).astype(np.uint8)))[name]
    assert found.state == state
    assert words in found.sentence


def test_larger_cells_are_larger_by_the_zoom():
    zoomed = ndimage.zoom(SITE, (1, 1.4, 1.4, 1), order=1)
    start = (zoomed.shape[1] - 48) // 2
    images = zoomed[:, start : start + 48, start : start + 48]
    before, after = (by_name(measured(x))["nucleus_diameter"] for x in (SITE, images))
    assert after.site.median / before.site.median == pytest.approx(1.4, rel=0.1)
    assert after.state == DIFFERENT
    assert after.sentence.startswith("Nuclei are 1.")


def test_classes_that_the_site_does_not_have_are_left_out():
    platelets = TRAINING.take(TRAINING.labels == TRAINING.classes.index("platelet"))
    everything = by_name(measured(platelets.images))["cell_diameter"]
    alike = measured(platelets.images, classes=("platelet",))
    assert everything.sentence.startswith("Cells are 0.")
    assert by_name(alike)["cell_diameter"].state == LIKE
    assert alike.n_training == 12
    assert alike.classes == ("platelet",)


def test_the_detector_adds_what_the_network_sees():
    scores = Model(Detector("knn", {}, 200.0, 0.01, 96, 48)).distance(SITE)
    detector = Detector("knn", {}, float(np.quantile(scores, 0.5)), 0.01, 96, 48)
    found = by_name(measured(SITE, Model(detector)))
    assert found["unlike"].site == pytest.approx(0.5)
    assert found["unlike"].training == 0.01
    assert found["unlike"].state == FAR
    assert "50 % of the images" in found["unlike"].sentence
    assert found["feature_distance"].site.median == pytest.approx(np.median(scores), rel=1e-3)
    assert "unlike" not in by_name(measured(SITE))


def test_images_without_a_cell_are_counted():
    images = np.concatenate([SITE[:20], np.full((20, 48, 48, 3), 220, np.uint8)])
    found = by_name(measured(images))["not_found"]
    assert found.site == 0.5
    assert found.state == FAR
    none = measured(images[20:])
    assert "nucleus_diameter" not in by_name(none)
    assert by_name(none)["not_found"].site == 1


def test_it_survives_json():
    distance = measured((SITE * 0.7).astype(np.uint8))
    assert SiteDistance.from_dict(json.loads(json.dumps(distance.to_dict()))) == distance
    assert len(distance.sentences) == sum(
        x.state != LIKE for x in (*distance.measures, *distance.shares)
    )


def test_training_images_may_come_without_labels_and_are_a_sample(monkeypatch):
    monkeypatch.setattr(site_distance, "_MAX_TRAINING", 30)
    assert site_distance.measure(PLAIN, SITE, TRAINING.images).n_training == 30
    assert isinstance(TRAINING, Dataset)
    with pytest.raises(ValueError, match="training images"):
        site_distance.measure(PLAIN, SITE[:, :40, :40], TRAINING)
