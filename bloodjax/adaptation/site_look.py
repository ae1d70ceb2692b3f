"""Brings the images of a site to the look of the training images: the remedies that change images.

In this order: the size of the cell, by a frame or a zoom; stains that are denser than training's
made thinner; the background's colour. A remedy is applied if its check in `remedies` says so.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from bloodjax.adaptation import cell_finder, remedies, site_images, stains
from bloodjax.adaptation.remedies import Remedy
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.data import lazy
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.site import Site
from bloodjax.metrics import novelty


def change(
    model: Classifier, images: SiteImages, train: Dataset
) -> tuple[list[Remedy], SiteImages]:
    """Tries the remedies, and logs a line for each.

    Args:
      model: The classifier. Its site has the remedies that are applied then.
      images: Images of the site.
      train: Training images of the run, with their labels.

    Returns:
      The remedies, and the images as the model at its site reads them.
    """
    measured = images.measured()
    cells, probabilities = cell_finder.find(measured), model.predict(measured)
    rows = site_images.sample(len(train))
    of_train = np.asarray(lazy.take(train.images, rows))
    of_classes = np.isin(model.classes, model.possible_classes)[train.labels[rows]]
    home = cell_finder.find(of_train)
    sizes = remedies.training_sizes(home, train.labels[rows], len(model.classes))
    frame, framed = remedies.frame_cells(cells, images.sides, sizes, probabilities)
    if frame and np.any(images.sides == model.config.data.image_size):
        # An image of the network's size is taken as it is, so it would not be framed.
        why = "Some images have the network's size, which is never changed."
        frame, framed = 0, dataclasses.replace(framed, applied=False, why=why)
    factor, zoomed = (1.0, None)
    if frame:
        model.change_site(fit=f"{frame}px")
    else:
        factor, zoomed = remedies.zoom_cells(cells, sizes, probabilities)
    images = images.again(model)
    looks = images.measured() if frame else measured
    sized = Site(appearance=Appearance(zoom=factor)).prepare(looks)
    weights = _as_at_site(train.labels[rows], probabilities)
    density, thinned = remedies.thin_stains(
        stains.of_images(sized, stains.light(cells.background)),
        stains.of_images(of_train, stains.light(home.background), weights),
    )
    coloured = remedies.to_training(cells, home, of_classes)
    coloured = dataclasses.replace(coloured, zoom=factor, density=density)
    plain = dataclasses.replace(coloured, target=coloured.background)
    judged = remedies.judge_colour(*_feature_distances(model, [plain, coloured], looks, of_train))
    chosen = coloured if judged.applied else plain
    model.change_site(appearance=None if chosen.changes_nothing else chosen)
    tried = [framed, *([zoomed] if zoomed else []), thinned, judged]
    for remedy in tried:
        remedy.log()
    return tried, images


def _as_at_site(
    labels: Int[np.ndarray, " m"], probabilities: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, " m"]:
    """Weights of training images, in shares of the classes as predicted at the site."""
    shares = probabilities.mean(axis=0, dtype=np.float64)
    weights = (shares / np.maximum(np.bincount(labels, minlength=len(shares)), 1))[labels]
    return weights if weights.any() else np.ones(len(labels))


def _feature_distances(
    model: Classifier, looks: list[Appearance], images: np.ndarray, train: np.ndarray
) -> list[Float[np.ndarray, " n"]]:
    """Distances of features to the nearest training images', for each appearance of the site."""
    known = model.at_home().describe_fully(train)
    arrays = novelty.fit("knn", known, np.zeros(len(train), int), known)
    each = [model.at(Site(appearance=look)).describe_fully(images) for look in looks]
    return [novelty.score("knn", arrays, asked) for asked in each]
