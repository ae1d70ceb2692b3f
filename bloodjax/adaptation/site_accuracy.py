"""How accurate a run is at a site, without labels.

`metrics.accuracy_estimation` needs labelled images on which the run is about as wrong as at the
site. Two are made of validation images: distorted copies, and copies with the look of the site.
These get the site's backgrounds, size of cells and stains (`stains.transport`).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax.adaptation import cell_finder, stains
from bloodjax.augment import zoom
from bloodjax.corruptions import registry
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import Images
from bloodjax.evaluation.site import Site
from bloodjax.metrics import accuracy_estimation
from bloodjax.metrics.accuracy_estimation import AccuracyEstimate
from bloodjax.training import corrupted_splits

# Validation images at most: as they are, and changed. Images of the site that are measured.
_MOST, _MOST_CHANGED, _MOST_OF_SITE = 800, 400, 400
_DISTORTIONS = "everything"
# Where fewer classes can occur, confidences are higher. The validation images then are answered
# with the same list of classes, unless that leaves less than this share of errors, by which the
# threshold of confidence is found.
_ENOUGH_ERRORS = 0.05
_MOST_ZOOM = 3.0


@runtime_checkable
class Answering(Protocol):
    """What is needed of a classifier."""

    classes: tuple[str, ...]
    possible_classes: tuple[str, ...]
    site: Site | None

    def predict(self, images: ImagesLike) -> Float[np.ndarray, "n classes"]:
        """Calibrated class probabilities, adjusted to the site."""
        ...

    def at(self, site: Site | None) -> Answering:
        """The same classifier at another site."""
        ...


def estimate(
    model: Answering,
    images: Images,
    probabilities: Float[np.ndarray, "n classes"],
    validation: Dataset,
    *,
    seed: int = 0,
) -> AccuracyEstimate:
    """Estimates the accuracy of a classifier at its site.

    Args:
      model: The classifier, calibrated. Its site may be None.
      images: At least one image of the site, of the network's size, before any change.
      probabilities: Class probabilities of these images by the classifier.
      validation: Validation split of the run, from the laboratory where it was trained.
      seed: Seed of the samples, distortions and resamples.
    """
    rng = np.random.default_rng(seed)
    home = _sample(validation, np.arange(len(validation)), _MOST, rng)
    reference = (model.at(None).predict(home.images), home.labels)
    possible = np.isin(model.classes, model.possible_classes)
    where, changed = np.flatnonzero(possible[validation.labels]), {}
    if len(where):
        restricted = model.at(Site(model.possible_classes))
        known = home.take(np.flatnonzero(possible[home.labels]))
        if len(known):
            alike = (restricted.predict(known.images), known.labels)
            if accuracy_estimation.accuracy(alike) <= 1 - _ENOUGH_ERRORS:
                reference = alike
        sample = _sample(validation, where, _MOST_CHANGED, rng)
        choice = registry.parse(_DISTORTIONS, "the distortions")
        distorted = corrupted_splits.distorted(sample, choice, seed, "validation images")
        changed["distorted validation images"] = (restricted.predict(distorted), sample.labels)
        of_site = np.sort(rng.permutation(len(images))[:_MOST_OF_SITE])
        alike = with_look_of(images[of_site], np.asarray(sample.images[:]), rng)
        name = "validation images with the look of the site"
        changed[name] = (model.predict(alike), sample.labels)
    return accuracy_estimation.estimate(probabilities, reference, changed, seed=seed)


def with_look_of(
    site: UInt8[np.ndarray, "n size size 3"],
    images: UInt8[np.ndarray, "m size size 3"],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "m size size 3"]:
    """Images with the backgrounds, stains and size of cells of a site; see the module.

    Args:
      site: At least one image of the site.
      images: At least one image of the laboratory where the run was trained.
      rng: Chooses the image of the site whose background each image gets.
    """
    there, here = cell_finder.find(site), cell_finder.find(images)
    site_light, light = (stains.light(found.background) for found in (there, here))
    weights = zoom.weights(images.shape[1], _zoom(there.nucleus_diameter, here.nucleus_diameter))
    density = stains.density(images, light).transpose(0, 3, 1, 2)
    density = (weights @ density @ weights.T).transpose(0, 2, 3, 1)
    wanted = stains.of_images(site, site_light)
    change = stains.transport(stains.second_moment(density), wanted)
    given = site_light[rng.integers(len(site), size=len(images))]
    changed = (given + 1)[:, None, None] * np.exp(-density @ change) - 1
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _zoom(site: Float[np.ndarray, " n"], images: Float[np.ndarray, " m"]) -> float:
    """How much larger nuclei are at the site; 1 where no nuclei were found."""
    if np.isnan(site).all() or np.isnan(images).all():
        return 1.0
    return float(np.clip(np.nanmedian(site) / np.nanmedian(images), 1 / _MOST_ZOOM, _MOST_ZOOM))


def _sample(
    dataset: Dataset, where: Int[np.ndarray, " n"], most: int, rng: np.random.Generator
) -> Dataset:
    """At most `most` of the images at the indices `where`."""
    chosen = rng.permutation(where)[:most]
    return dataset.take(np.sort(chosen))
