import dataclasses

import numpy as np
import pytest

from bloodjax.adaptation import labelled_methods
from bloodjax.adaptation.labelled_methods import FITS, METHODS, Setting
from bloodjax.data import sources
from bloodjax.evaluation import classifier
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.site import Site


@pytest.fixture(scope="module")
def home():
    return sources.load("synthetic:96", 32, seed=3)


@pytest.fixture(scope="module")
def there(home):
    """Cells of a site where the red and the blue channel are exchanged."""
    return dataclasses.replace(home, images=np.ascontiguousarray(home.images[..., ::-1])).take(
        np.concatenate([np.flatnonzero(home.labels == i)[:3] for i in range(8)])
    )


def at(trained, site):
    model = classifier.load(trained)
    return model if site is None else model.at(site)


def test_only_the_site_s_cells_get_the_look_of_training(trained, there, home):
    site = Site(appearance=Appearance(background=(120.0,) * 3, target=(240.0,) * 3))
    setting = Setting.of(at(trained, site), there, home, 0, None)
    np.testing.assert_array_equal(setting.site.images, site.prepare(there.images))
    np.testing.assert_array_equal(setting.home.images, home.images)
    assert setting.model.site is None
    np.testing.assert_allclose(setting.shares.sum(), 1)


def test_what_cannot_occur_has_no_probability(trained, there, home):
    names = classifier.load(trained).classes
    two = there.take(np.flatnonzero(there.labels < 2))
    setting = Setting.of(at(trained, Site(classes=names[:2])), two, home, 0, None)
    kept = setting.possible_only(setting.own)
    assert np.all(kept[..., 2:] == 0)
    np.testing.assert_allclose(kept.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("method", ["temperature", "vector", "head"])
def test_a_method_answers_for_the_cells_that_are_asked(trained, there, home, method):
    assert method in METHODS
    setting = Setting.of(at(trained, None), there, home, 0, None)
    known = np.arange(len(there)) % 3 != 0
    both, variables = FITS[method](setting)(known, ~known)
    assert both.shape == (np.count_nonzero(~known), 2, 8)
    np.testing.assert_allclose(both.sum(axis=-1), 1, rtol=1e-4)
    assert (variables is not None) == (method == "head")
    if method == "temperature":
        np.testing.assert_array_equal(both, setting.own[~known])


def test_a_scale_and_a_bias_lower_the_loss_of_what_they_were_fitted_to(trained, there, home):
    setting = Setting.of(at(trained, None), there, home, 0, None)
    known = np.ones(len(there), bool)
    found = labelled_methods.fit_vector(setting, known)
    rows = np.arange(len(there)), there.labels

    def loss(probabilities):
        return -np.log(np.maximum(probabilities[rows], 1e-12)).mean()

    for i, one in enumerate(found):
        assert loss(one.apply(setting.own[:, i])) < loss(setting.own[:, i])
