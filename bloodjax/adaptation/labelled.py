"""What a few labelled cells of a site are worth: a calibration, a new last layer, or all layers.

Each method is fitted without some of the labelled cells and judged by its answers to those. Of
methods that are as good within one standard error, the simplest is taken (Breiman et al. 1984).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

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
from bloodjax.cli import console
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import calibration
from bloodjax.evaluation.classifier import Classifier
from bloodjax.io.files import atomic_write
from bloodjax.metrics import calibration as scaling
from bloodjax.metrics.calibration import NONE, Calibration
from bloodjax.metrics.classification import SMALLEST_PROBABILITY

# From the simplest on.
METHODS = ("temperature", "vector", "head", "layers")
FOLDS = 3
_VIEWS = "d4"
# Training cells of each class that the last layer is fitted to and that all layers rehearse.
_REHEARSED = 200
# Labelled cells that weigh as much as the home calibration in the temperature.
_HOME_WEIGHT = 20

_NAMES = (calibration.DEFAULT, calibration.NO_VIEWS)
# Averaged over the views, and without views.
Both = Float[np.ndarray, "_ 2 _"]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What was fitted to labelled cells of a site.

    Attributes:
      variables: The network's new variables; None if they are the run's.
      calibration: The calibrations by name (see `evaluation.calibration`).
      method: One of `METHODS`.
      cross_validation: "n": labelled cells that were predicted without having been learned;
        "folds"; "classes": class name -> number of labelled cells; "methods": method -> "loss"
        (mean over the classes, after one temperature), "worse": by how much it is above the lowest,
        its standard error "se", and "accuracy"; "why": one sentence.
      home: Accuracy on the validation split, without views and without the site, "before" and
        "after", and its "n"; empty without a validation split.
    """

    variables: PyTree | None
    calibration: Mapping[str, Calibration]
    method: str
    cross_validation: dict[str, Any]
    home: dict[str, Any]


def fit(
    model: Classifier,
    labelled: Dataset,
    rehearsal: Dataset,
    validation: Dataset | None,
    seed: int,
    *,
    methods: tuple[str, ...] = METHODS,
    progress: pathlib.Path | None = None,
) -> Labelled:
    """Chooses a method by cross-validation among labelled cells of a site, and fits it to all.

    A class with one cell is never held out. Without any cell that can be, the new last layer is
    taken, which cost no accuracy wherever it was tried.

    Args:
      model: The classifier of the run; its site says which classes can occur, and how images are
        prepared.
      labelled: Labelled cells of the site in the network's size, at least one, with the run's
        classes.
      rehearsal: Training split of the run.
      validation: Validation split of the run.
      seed: Random seed.
      methods: Those of `METHODS` to choose from, the first of which needs nothing.
      progress: Folder for what a killed call has computed, which the same call then reads. Only
        the folds of "layers" are kept: anything else takes less than a minute or two.
    """
    setting = _Setting.of(model, labelled, rehearsal, seed, progress)
    labels, fold_of = labelled.labels, folds(labelled.labels, seed)
    # In the order of the folds, as `_out_of_fold` has them.
    asked = np.argsort(fold_of, kind="stable")[np.count_nonzero(fold_of < 0) :]
    if len(np.unique(labels)) == 1:
        methods = methods[:1]  # A classifier that only names this class would look perfect.
    fits = {name: _FITS[name](setting) for name in methods}
    predicted = {}
    if len(asked):
        for name, fit_to in fits.items():
            each = _out_of_fold(fit_to, fold_of)
            predicted[name] = np.concatenate([each[fold] for fold in sorted(each)])
    result = _compare(predicted, labels[asked], setting)
    if result:
        method = next(name for name in methods if result[name]["worse"] <= result[name]["se"])
        why = _why(method, result)
    else:
        method = "head" if "head" in methods else methods[0]
        why = f"no class has two labelled cells to check a method on; taken is {_TEXTS[method]}"
    console.log_info(_line(len(asked), result, why))
    everything = np.ones(len(labels), bool)
    _, variables = fits[method](everything, ~everything)
    home, temperatures = _at_home(setting.model, variables, validation)
    return Labelled(
        variables,
        _calibrations(setting, method, predicted.get(method), labels[asked], temperatures),
        method,
        {
            "n": len(asked),
            "folds": FOLDS,
            "classes": {name: int(np.sum(labels == i)) for i, name in enumerate(model.classes)},
            "methods": result,
            "why": why,
        },
        home,
    )


def folds(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """The fold of each cell, in range(FOLDS); -1 for the only cell of a class.

    The cells of a class are spread over the folds, so that some of each are left to learn from.
    """
    rng = np.random.default_rng(seed)
    found, position = np.full(len(labels), -1), 0
    for label in np.unique(labels):
        index = rng.permutation(np.flatnonzero(labels == label))
        if len(index) > 1:
            found[index] = (position + np.arange(len(index))) % FOLDS
            position += len(index)
    return found


@dataclasses.dataclass(frozen=True)
class _Setting:
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
    ) -> _Setting:
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


# Fits a method to the labelled cells of the first mask; returns the class probabilities of those of
# the second, and the network's new variables or None.
_Mask = Bool[np.ndarray, " n"]
_Fit = Callable[[_Mask, _Mask], tuple[Both, PyTree | None]]


def _temperature(setting: _Setting) -> _Fit:
    return lambda _, asked: (setting.own[asked], None)


def _vector(setting: _Setting) -> _Fit:
    def fit_to(known: _Mask, asked: _Mask) -> tuple[Both, PyTree | None]:
        found = _fit_vector(setting, known)
        own = setting.own[asked]
        return np.stack([one.apply(own[:, i]) for i, one in enumerate(found)], axis=1), None

    return fit_to


def _fit_vector(setting: _Setting, known: _Mask) -> list[Calibration]:
    """The calibrations with views and without."""
    # Classes that cannot occur are in it too, as they are where the calibration is applied.
    own, labels = setting.own[known], setting.site.labels[known]
    return [scaling.fit_vector(own[:, i], labels) for i in range(2)]


def _head(setting: _Setting) -> _Fit:
    variables = jax.device_get(setting.model.predictor.variables)
    start = linear_head.of_network(variables)
    site = Cells(_layer_inputs(setting.model, setting.site.images, _VIEWS), setting.site.labels)
    home = Cells(_layer_inputs(setting.model, setting.home.images, "none"), setting.home.labels)

    def fit_to(known: _Mask, asked: _Mask) -> tuple[Both, PyTree | None]:
        layer = linear_head.fit(start, site.take(known), home, setting.shares, setting.possible)
        each = scipy.special.softmax(layer.logits(site.inputs[asked]), axis=-1)
        both = np.stack([each.mean(axis=1), each[:, 0]], axis=1)
        return both, linear_head.into_network(layer, variables)

    return fit_to


def _layers(setting: _Setting) -> _Fit:
    training = FineTuning(setting.model, setting.site, setting.home, setting.seed)
    average = setting.model.config.evaluation.tta_average
    views = TTAConfig(_VIEWS, average, with_plain=True)

    def fit_to(known: _Mask, asked: _Mask) -> tuple[Both, PyTree | None]:
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


_FITS = {"temperature": _temperature, "vector": _vector, "head": _head, "layers": _layers}


def _file(setting: _Setting, known: _Mask, asked: _Mask) -> pathlib.Path | None:
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


def _out_of_fold(fit_to: _Fit, fold_of: Int[np.ndarray, " n"]) -> dict[int, Both]:
    """Fold -> class probabilities of its cells by the method, fitted to the others."""
    return {
        int(fold): fit_to(fold_of != fold, fold_of == fold)[0]
        for fold in np.unique(fold_of[fold_of >= 0])
    }


def _compare(
    predicted: Mapping[str, Both], labels: Int[np.ndarray, " n"], setting: _Setting
) -> dict[str, dict[str, float]]:
    """The figures of each method for cells that it was not fitted to; see `Labelled`.

    Args:
      predicted: Method -> class probabilities of these cells.
      labels: Their class indices.
      setting: The setting.
    """
    if not len(labels):
        return {}
    counts = np.bincount(labels, minlength=len(setting.shares))
    # Every class counts alike, however many of its cells are labelled.
    weights = len(labels) / np.count_nonzero(counts) / counts[labels]
    losses, result = {}, {}
    for name, both in predicted.items():
        possible = setting.possible_only(both[:, 0])
        scaled = scaling.fit_temperature(possible, labels).apply(possible)
        true = scaled[np.arange(len(labels)), labels]
        losses[name] = -weights * np.log(np.clip(true, SMALLEST_PROBABILITY, 1))
        hit = possible.argmax(axis=1) == labels
        result[name] = {
            "loss": float(losses[name].mean()),
            "accuracy": float(np.mean(weights * hit)),
        }
    best = min(losses, key=lambda name: losses[name].mean())
    for name, loss in losses.items():
        worse = loss - losses[best]
        error = worse.std(ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else np.inf
        result[name] |= {"worse": float(worse.mean()), "se": float(error)}
    return result


def _why(method: str, result: Mapping[str, Mapping[str, float]]) -> str:
    best = min(result, key=lambda name: result[name]["loss"])
    if method == best:
        simpler = METHODS[: METHODS.index(method)]
        if not any(name in result for name in simpler):
            return f"no other method has a lower loss than {_TEXTS[method]}"
        return f"{_TEXTS[method]} has the lowest loss, by more than a standard error"
    return (
        f"{_TEXTS[method]} is the simplest method whose loss is within one standard error of the "
        f"lowest, that of {_TEXTS[best]}"
    )


_TEXTS = {
    "temperature": "one temperature for the run's own probabilities",
    "vector": "a scale and a bias for each class",
    "head": "a new last layer",
    "layers": "training of all layers",
}


def _at_home(
    model: Classifier, variables: PyTree | None, validation: Dataset | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Accuracy at home before and after, and the temperature there of each calibration.

    Args:
      model: The classifier of the run without a site: the images at home need no other appearance.
      variables: The network's new variables; None if they are the run's.
      validation: Validation split of the run.
    """
    old = {name: model.calibrations.get(name, NONE).temperature for name in _NAMES}
    if validation is None:
        return {}, old
    images, labels = validation.images, validation.labels
    before = model.predict(images, "none", calibrated=False)
    home = {"before": float(np.mean(before.argmax(axis=1) == labels)), "n": len(labels)}
    if variables is None:
        return home | {"after": home["before"]}, old
    adapted = Classifier(model.config, model.classes, variables, model.step)
    after = adapted.predict(images, "none", calibrated=False)
    home["after"] = float(np.mean(after.argmax(axis=1) == labels))
    # With views the temperature changes by the same factor as without.
    changed = scaling.fit_temperature(after, labels).temperature
    unchanged = scaling.fit_temperature(before, labels).temperature
    return home, {name: value * changed / unchanged for name, value in old.items()}


def _calibrations(
    setting: _Setting,
    method: str,
    predicted: Both | None,
    labels: Int[np.ndarray, " n"],
    at_home: Mapping[str, float],
) -> dict[str, Calibration]:
    """The calibrations of the chosen method.

    A temperature is a mean, in logarithms, of the one that suits the held-out cells and the one at
    home, which weighs as much as `_HOME_WEIGHT` cells.

    Args:
      setting: The setting.
      method: The method.
      predicted: Its class probabilities of the held-out cells.
      labels: Their class indices.
      at_home: Temperature at home of each calibration.
    """
    if method == "vector":
        everything = np.ones(len(setting.site.labels), bool)
        return dict(zip(_NAMES, _fit_vector(setting, everything), strict=True))
    found, n = {}, len(labels)
    for i, name in enumerate(_NAMES):
        temperature = at_home[name]
        if n:
            possible = setting.possible_only(predicted[:, i])
            here = scaling.fit_temperature(possible, labels).temperature
            logs = n * np.log(here) + _HOME_WEIGHT * np.log(temperature)
            temperature = float(np.exp(logs / (n + _HOME_WEIGHT)))
        found[name] = Calibration("temperature", temperature)
    return found


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


def _line(n: int, result: Mapping[str, Mapping[str, float]], why: str) -> str:
    figures = [
        f"{name} {found['loss']:.3f} ({found['accuracy']:.3f})" for name, found in result.items()
    ]
    checked = f"{n} labelled cells held out in turn, loss (mean recall): {', '.join(figures)}; "
    return f"{checked if result else ''}{why}"
