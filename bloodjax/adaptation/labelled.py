"""What a few labelled cells of a site are worth: a calibration, a new last layer, or all layers.

Each method is fitted without some of the labelled cells and judged by its answers to those. Of
methods that are as good within one standard error, the simplest is taken (Breiman et al. 1984).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, PyTree

from bloodjax.adaptation import labelled_methods
from bloodjax.adaptation.labelled_methods import FITS, METHODS, Both, Fit, Setting
from bloodjax.cli import console
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import calibration
from bloodjax.evaluation.classifier import Classifier
from bloodjax.metrics import calibration as scaling
from bloodjax.metrics.calibration import NONE, Calibration
from bloodjax.metrics.classification import SMALLEST_PROBABILITY

FOLDS = 3
# Labelled cells that weigh as much as the home calibration in the temperature.
_HOME_WEIGHT = 20

_NAMES = (calibration.DEFAULT, calibration.NO_VIEWS)


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
    methods: tuple[str, ...] = tuple(METHODS),
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
    setting = Setting.of(model, labelled, rehearsal, seed, progress)
    labels, fold_of = labelled.labels, folds(labelled.labels, seed)
    # In the order of the folds, as `_out_of_fold` has them.
    asked = np.argsort(fold_of, kind="stable")[np.count_nonzero(fold_of < 0) :]
    if len(np.unique(labels)) == 1:
        methods = methods[:1]  # A classifier that only names this class would look perfect.
    fits = {name: FITS[name](setting) for name in methods}
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
        why = f"no class has two labelled cells to check a method on; taken is {METHODS[method]}"
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


def _out_of_fold(fit_to: Fit, fold_of: Int[np.ndarray, " n"]) -> dict[int, Both]:
    """Fold -> class probabilities of its cells by the method, fitted to the others."""
    return {
        int(fold): fit_to(fold_of != fold, fold_of == fold)[0]
        for fold in np.unique(fold_of[fold_of >= 0])
    }


def _compare(
    predicted: Mapping[str, Both], labels: Int[np.ndarray, " n"], setting: Setting
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
        if method == next(iter(result)):
            return f"no other method has a lower loss than {METHODS[method]}"
        return f"{METHODS[method]} has the lowest loss, by more than a standard error"
    return (
        f"{METHODS[method]} is the simplest method whose loss is within one standard error of the "
        f"lowest, that of {METHODS[best]}"
    )


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
    setting: Setting,
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
        return dict(zip(_NAMES, labelled_methods.fit_vector(setting, everything), strict=True))
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


def _line(n: int, result: Mapping[str, Mapping[str, float]], why: str) -> str:
    figures = [
        f"{name} {found['loss']:.3f} ({found['accuracy']:.3f})" for name, found in result.items()
    ]
    checked = f"{n} labelled cells held out in turn, loss (mean recall): {', '.join(figures)}; "
    return f"{checked if result else ''}{why}"
