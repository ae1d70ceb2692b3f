import dataclasses

import numpy as np

from bloodjax.adaptation import site_look
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.data.synthetic import render
from bloodjax.evaluation import classifier


def test_dense_stains_are_thinned(trained):
    """The same cells with more dye: what the network sees is as dense as in training again."""
    model, train = classifier.load(trained), render.render_dataset(64, 32, seed=3)
    cells = render.render_dataset(64, 32, seed=9)
    denser = np.rint(255 * (np.asarray(cells.images) / 255.0) ** 2).astype(np.uint8)
    there = dataclasses.replace(cells, images=denser)
    images = SiteImages(there, np.full(64, 32.0), "cells", fit=model.fit)
    tried, _ = site_look.change(model, images, train)
    stain = next(remedy for remedy in tried if remedy.name == "stain")
    assert stain.applied
    assert stain.check["thinnest"] < 0.6
    assert np.linalg.eigvalsh(model.site.appearance.density).max() <= 1 + 1e-9
    darkness = [255 - np.asarray(x, float).mean() for x in (cells.images, denser)]
    seen = 255 - model.site.prepare(denser).mean()
    assert abs(seen - darkness[0]) < 0.4 * abs(darkness[1] - darkness[0])


def test_training_images_count_in_the_shares_of_the_site():
    labels = np.array([0, 0, 0, 1, 2])
    probabilities = np.array([[0.2, 0.8, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0]])
    found = site_look._as_at_site(labels, probabilities)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.1, 0.7, 0.0])
    # Of the classes that are predicted there is no training image.
    np.testing.assert_array_equal(site_look._as_at_site(labels, np.eye(4)[[3]]), np.ones(5))
