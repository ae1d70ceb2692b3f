"""Four ways to learn from a few labelled cells of a site, from the simplest to the dearest.

`METHODS` names them. `FITS` has for each what makes it from a `Setting`: a function that fits the
method to some of the labelled cells, and gives class probabilities of others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Bool, Float, Int, PyTree, UInt8

from bloodjax.adaptation import linear_head
from bloodjax.adaptation.fine_tuning import FineTuning, LabelledImages
from bloodjax.adaptation.linear_head import Cells
from bloodjax.augment import geometry
from bloodjax.augment.tta import TTAConfig
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation.classifier import Classifier
from bloodjax.io.files import atomic_write
from bloodjax.metrics import calibration as scaling
from bloodjax.metrics.calibration import Calibration
from bloodjax.metrics.classification import SMALLEST_PROBABILITY

# From the simplest on, with what a sentence calls them.
METHODS = {
    "temperature": "one temperature for the run's own probabilities",
    "vector": "a scale and a bias for each class",
    "head": "a new last layer",
    "layers": "training of all layers",
}
_VIEWS = "d4"
# Training cells of each class that the last layer is fitted to and that all layers rehearse.
_REHEARSED = 200

# Averaged over the views, and without views.
Both = Float[np.ndarray, "_ 2 _"]
Mask = Bool[np.ndarray, " n"]
# Fits a method to the labelled cells of the first mask; returns the class probabilities of those of
# the second, and the network's new variables or None.
Fit = Callable[[Mask, Mask], tuple[Both, PyTree | None]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the methods fit to.

    Attributes:
      model: The classifier of the run without a site.
      site: Labelled cells of the site, already with the appearance of the training cells.
      own: Their uncalibrated class probabilities by the run's own weights.
      home: Some training cells of each class, as they are.
      shares: Share of each class in training.
      possible: Classes that can occur at the site.
      seed: Random seed.
      progress: Folder for finished folds, or None.
    """

    model: Classifier
    site: LabelledImages
    own: Both
    home: LabelledImages
    shares: Float[np.ndarray, " classes"]
    possible: Bool[np.ndarray, " classes"]
    seed: int
    progress: pathlib.Path | None

    @classmethod
    def of(
        cls,
        model: Classifier,
        labelled: Dataset,
        rehearsal: Dataset,
        seed: int,
        progress: pathlib.Path | None,
    ) -> Setting:
        """The setting of labelled cells.

        Args:
          model: The classifier of the run; its site says which classes can occur, and how images
            are prepared.
          labelled: Labelled cells of the site in the network's size.
          rehearsal: Training split of the run.
          seed: Random seed.
          progress: Folder for finished folds, or None.
        """
        counts = np.bincount(rehearsal.labels, minlength=len(model.classes))
        used = rehearsal.take(_of_each_class(rehearsal.labels, _REHEARSED, seed))
        images = _in_memory(labelled)
        site = LabelledImages(model.site.prepare(images) if model.site else images, labelled.labels)
        bare = model.at_home()
        return cls(
            bare,
            site,
            bare.predict_with_plain(site.images, _VIEWS, calibrated=False),
            LabelledImages(_in_memory(used), used.labels),
            np.maximum(counts, 1) / np.maximum(counts, 1).sum(),
            np.isin(model.classes, model.possible_classes),
            seed,
            progress,
        )

    def possible_only(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities of the classes that can occur, scaled to the sum 1."""
        kept = np.where(self.possible, np.maximum(probabilities, SMALLEST_PROBABILITY), 0)
        return kept / kept.sum(axis=-1, keepdims=True)


def _temperature(setting: Setting) -> Fit:
    return lambda _, asked: (setting.own[asked], None)


def _vector(setting: Setting) -> Fit:
    def fit_to(known: Mask, asked: Mask) -> tuple[Both, PyTree | None]:
        found = fit_vector(setting, known)
        own = setting.own[asked]
        return np.stack([one.apply(own[:, i]) for i, one in enumerate(found)], axis=1), None

    return fit_to


def fit_vector(setting: Setting, known: Mask) -> list[Calibration]:
    """The calibrations with views and without."""
    # Classes that cannot occur are in it too, as they are where the calibration is applied.
    own, labels = setting.own[known], setting.site.labels[known]
    return [scaling.fit_vector(own[:, i], labels) for i in range(2)]


def _head(setting: Setting) -> Fit:
    variables = jax.device_get(setting.model.predictor.variables)
    start = linear_head.of_network(variables)
    site = Cells(_layer_inputs(setting.model, setting.site.images, _VIEWS), setting.site.labels)
    home = Cells(_layer_inputs(setting.model, setting.home.images, "none"), setting.home.labels)

    def fit_to(known: Mask, asked: Mask) -> tuple[Both, PyTree | None]:
        layer = linear_head.fit(start, site.take(known), home, setting.shares, setting.possible)
        each = scipy.special.softmax(layer.logits(site.inputs[asked]), axis=-1)
        both = np.stack([each.mean(axis=1), each[:, 0]], axis=1)
        return both, linear_head.into_network(layer, variables)

    return fit_to


def _layers(setting: Setting) -> Fit:
    training = FineTuning(setting.model, setting.site, setting.home, setting.seed)
    average = setting.model.config.evaluation.tta_average
    views = TTAConfig(_VIEWS, average, with_plain=True)

    def fit_to(known: Mask, asked: Mask) -> tuple[Both, PyTree | None]:
        file = _file(setting, known, asked) if asked.any() else None
        if file is not None and file.exists():
            with np.load(file, allow_pickle=False) as saved:
                return saved["both"], None
        name = f"all layers, {known.sum()} of {len(known)} cells"
        variables = training.train(known, name)
        if not asked.any():
            return setting.own[asked], variables
        both = training.predict(variables, setting.site.images[asked], views)
        if file is not None:
            buffer = io.BytesIO()
            np.savez(buffer, both=both)
            file.parent.mkdir(exist_ok=True)
            atomic_write(file, buffer.getvalue())
        return both, None

    return fit_to


FITS = {"temperature": _temperature, "vector": _vector, "head": _head, "layers": _layers}


def _file(setting: Setting, known: Mask, asked: Mask) -> pathlib.Path | None:
    """The file of a fold's probabilities, named by everything that they depend on."""
    if setting.progress is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    head = linear_head.of_network(jax.device_get(setting.model.predictor.variables))
    parts = (
        setting.site.images,
        setting.site.labels,
        known,
        asked,
        setting.home.images,
        setting.home.labels,
        head.kernel,
        np.array([setting.seed, setting.model.step]),
    )
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return setting.progress / f"layers-{digest.hexdigest()}.npz"


def _in_memory(dataset: Dataset) -> UInt8[np.ndarray, "n size size 3"]:
    return np.asarray(dataset.images[np.arange(len(dataset))])


def _layer_inputs(
    model: Classifier, images: np.ndarray, views: str
) -> Float[np.ndarray, "n views inputs"]:
    """The input of the network's last layer for each view of each image."""
    each = []
    for flags in geometry.VIEWS[views]:
        view = np.asarray(geometry.view(jnp.asarray(images), *flags))
        each.append(linear_head.inputs(model, model.describe(view)[0]))
    return np.stack(each, axis=1)


def _of_each_class(labels: Int[np.ndarray, " n"], most: int, seed: int) -> Int[np.ndarray, " m"]:
    """Indices of at most `most` cells of each class, ascending."""
    order = np.random.default_rng(seed).permutation(len(labels))
    taken = [order[labels[order] == label][:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(taken))
