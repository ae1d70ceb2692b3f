"""What may make images of a site easier for a run: size, stain and colour of cells, class shares.

Nothing here sees a label of the site. Each remedy has a check of its own, and is applied only if
the check says that it helps. The checks were chosen on three laboratories with known labels; what
did not help there, or not reliably, is not done: BatchNorm's statistics of the site, shares of the
classes where the images look unlike the training images (docs/guides/new-site.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from bloodjax.adaptation import stains
from bloodjax.adaptation.cell_finder import FoundCells
from bloodjax.adaptation.stains import Moment
from bloodjax.cli import console
from bloodjax.evaluation.appearance import UNCHANGED, Appearance, Matrix
from bloodjax.metrics.label_shift import LabelShift

# Factors of the size that are compared, and their steps in logarithms.
_LARGEST = 2.0
_STEPS = 141
# A cell counts as at most this far from its class's size, in logarithms: some are of another class.
_MOST_MISFIT = 0.5
# The misfit must fall by this share, and the size change by this factor, to be worth a resampling.
_LESS_MISFIT, _LEAST_ZOOM = 0.05, 1.03
_FEWEST_CELLS = 10
_UNKNOWN = "No whole training cell of the site's classes was found, so their size is not known."
# Images were each cut around its cell if their sides vary, in logarithms, by at least the first
# number, and their cells fill them more alike than cells of one class are alike: the spread of the
# diameters is at most the second times that within a class, and a larger image shows its cell
# hardly smaller, by a slope of the logarithms above the third.
_SIDES_VARY, _FILLED_ALIKE, _LEAST_SLOPE = 0.05, 0.85, -0.5
# The densities of one stain are at most this share of what they were, or none is changed.
_LEAST_THINNING = 0.7
# Share by which the distance of features to the nearest training images must fall.
_NEARER = 0.02
# Most images unlike the training images for which class shares are believed.
_MOST_UNLIKE = 0.05
_MOST_DISAGREEMENT = 0.05

Numbers = Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Remedy:
    """One remedy that was tried.

    Attributes:
      name: "frame", "size", "stain", "colour", "self_training" or "shares".
      applied: Whether its check says that it helps.
      check: What the check measured.
      why: The reason in one sentence.
    """

    name: str
    applied: bool
    check: dict[str, float]
    why: str
    tried: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; what could not be measured is null."""
        check = {name: value if np.isfinite(value) else None for name, value in self.check.items()}
        return dataclasses.asdict(self) | {"check": check}

    def log(self) -> None:
        """Logs whether the remedy was applied, and why; nothing if it was not tried."""
        if self.tried:
            done = "applied" if self.applied else "not applied"
            console.log_info(f"{self.name}: {done}. {self.why}")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large cells of each class are in the training images.

    Attributes:
      logarithm: For each class the median logarithm of the cell's diameter in pixels of the
        network's input; NaN for a class of which no whole cell was found.
      within: Spread of that logarithm within a class, see `_spread`.
    """

    logarithm: Float[np.ndarray, " classes"]
    within: float


def training_sizes(cells: FoundCells, labels: Int[np.ndarray, " n"], classes: int) -> Sizes:
    """The sizes of training cells.

    Args:
      cells: Cells that were found in training images of the network's size.
      labels: Their class indices.
      classes: Number of classes.
    """
    diameters = _log_diameters(cells)
    medians = np.full(classes, np.nan)
    for label in range(classes):
        of_class = diameters[(labels == label) & np.isfinite(diameters)]
        if len(of_class):
            medians[label] = np.median(of_class)
    deviations = diameters - medians[labels]
    return Sizes(medians, _spread(deviations[np.isfinite(deviations)]))


def frame_cells(
    cells: FoundCells, sides: Numbers, sizes: Sizes, probabilities: Float[np.ndarray, "n classes"]
) -> tuple[int, Remedy]:
    """Whether images of several sizes are crops of one magnification, and the frame they fit in.

    A detector of cells cuts each cell out with the same margin, so that in the network's size all
    cells have the same diameter. In a frame of one number of pixels they are in proportion again.

    Args:
      cells: Cells that were found in the site's images, in the network's size.
      sides: Shorter side of each image in its own pixels.
      sizes: Sizes of training cells.
      probabilities: Class probabilities of the site's images, of its classes.

    Returns:
      The side of the frame in pixels, 0 for none; and the remedy.
    """
    diameters = _log_diameters(cells)
    whole = np.isfinite(diameters)
    varies = float(np.log(sides).std())
    filled = _spread(diameters[whole])
    check = {"spread_of_sides": varies, "spread_of_cells": filled, "within_class": sizes.within}
    if varies < _SIDES_VARY or whole.sum() < _FEWEST_CELLS:
        why = "The images are of one size." if varies < _SIDES_VARY else "Too few cells were found."
        return 0, Remedy("frame", False, check, why, tried=False)
    slope = float(np.polyfit(np.log(sides[whole]), diameters[whole], 1)[0])
    check["slope"] = slope
    if not (filled <= _FILLED_ALIKE * sizes.within and slope >= _LEAST_SLOPE):
        why = "The cells do not all fill their images alike, as they do in crops around each cell."
        return 0, Remedy("frame", False, check, why)
    if not _are_known(sizes, diameters, probabilities):
        return 0, Remedy("frame", False, check, _UNKNOWN)
    middle = float(np.exp(np.log(sides).mean()))
    in_proportion = diameters + np.log(sides / middle)
    factor, misfit, before = _best_factor(in_proportion, sizes, probabilities)
    side = round(middle / factor)
    check |= {"misfit": misfit, "misfit_at_mean_side": before, "side": float(side)}
    why = (
        f"The images are crops of {sides.min():.0f} to {sides.max():.0f} pixels that their cells "
        f"fill alike; in a frame of {side} pixels the cells are as large as the training cells."
    )
    return side, Remedy("frame", True, check, why)


def zoom_cells(
    cells: FoundCells, sizes: Sizes, probabilities: Float[np.ndarray, "n classes"]
) -> tuple[float, Remedy]:
    """By how much the cells must be enlarged to be as large as training cells of their class.

    Args:
      cells: Cells that were found in the site's images, in the network's size.
      sizes: Sizes of training cells.
      probabilities: Class probabilities of the site's images, of its classes.

    Returns:
      The factor, 1 for no change; and the remedy.
    """
    diameters = _log_diameters(cells)
    n = int(np.isfinite(diameters).sum())
    if n < _FEWEST_CELLS:
        why = f"Only {n} whole cells were found, expected at least {_FEWEST_CELLS}."
        return 1.0, Remedy("size", False, {"cells": float(n)}, why, tried=False)
    if not _are_known(sizes, diameters, probabilities):
        return 1.0, Remedy("size", False, {"cells": float(n)}, _UNKNOWN, tried=False)
    factor, misfit, before = _best_factor(diameters, sizes, probabilities)
    check = {"factor": factor, "misfit_before": before, "misfit_after": misfit}
    if misfit > (1 - _LESS_MISFIT) * before or abs(np.log(factor)) < np.log(_LEAST_ZOOM):
        why = "The cells are as large as the training cells of their classes."
        return 1.0, Remedy("size", False, check, why)
    change = "enlarged" if factor > 1 else "reduced"
    why = f"The cells are {change} by {factor:.2f} to the size of training cells of their classes."
    return factor, Remedy("size", True, check, why)


def thin_stains(site: Moment, training: Moment) -> tuple[Matrix, Remedy]:
    """The map of optical densities that makes dense stains of the site as thin as in training.

    `stains.transport` maps the densities of the site to those of training. Where it would make them
    denser, they are kept: noise and the blocks of compression would grow with them.

    Args:
      site: Second moments of the site's optical densities.
      training: The same of training images, in shares of the classes as at the site.

    Returns:
      `Appearance.density`, and the remedy.
    """
    factors, directions = np.linalg.eigh(stains.transport(site, training))
    check = {"thinnest": float(factors[0]), "densest": float(factors[-1])}
    if factors[0] > _LEAST_THINNING:
        why = "No stain is much denser than in the training images."
        return UNCHANGED, Remedy("stain", False, check, why)
    thinned = (directions * np.minimum(factors, 1)) @ directions.T
    share = 100 * factors[0]
    why = f"The optical density of the stain that differs most is reduced to {share:.0f} %."
    rows = tuple(tuple(row) for row in thinned.tolist())
    return rows, Remedy("stain", True, check, why)


def judge_colour(before: Numbers, after: Numbers) -> Remedy:
    """Whether a change of the background's colour brings the images nearer to the training images.

    Args:
      before: Distance of each image's features to the nearest training images' as it is.
      after: The same with the background's colour of the training images.
    """
    distances = {"before": float(np.median(before)), "after": float(np.median(after))}
    fall = 1 - distances["after"] / distances["before"] if distances["before"] > 0 else 0.0
    check = {f"distance_{name}": value for name, value in distances.items()}
    if fall < _NEARER:
        why = "With the background of the training images, features are not nearer to theirs."
        return Remedy("colour", False, check, why)
    why = f"It brings the features {100 * fall:.0f} % nearer to those of training images."
    return Remedy("colour", True, check, why)


def judge_shares(shares: LabelShift, unlike: float | None) -> Remedy:
    """Whether probabilities may be corrected for the estimated shares of the classes.

    The estimate assumes that images of a class look as in training (label shift).

    Args:
      shares: The estimate.
      unlike: Share of the site's images that the detector calls unlike the training images; None
        without a detector.
    """
    check = {"disagreement": shares.disagreement}
    if unlike is not None:
        check["unlike"] = unlike
    if unlike is None or unlike > _MOST_UNLIKE:
        found = "not known" if unlike is None else f"{100 * unlike:.0f} %"
        why = f"Shares are believed only where images look as in training; unlike are {found}."
        return Remedy("shares", False, check, why)
    if shares.disagreement > _MOST_DISAGREEMENT:
        why = f"Two estimates of the shares differ by {100 * shares.disagreement:.0f} points."
        return Remedy("shares", False, check, why)
    return Remedy("shares", True, check, "Two estimates agree, and the images look as in training.")


def to_training(site: FoundCells, training: FoundCells, rows: Bool[np.ndarray, " m"]) -> Appearance:
    """The change of colour that gives the site's background the colour of the training images'.

    Args:
      site: Cells that were found at the site.
      training: Cells that were found in m training images.
      rows: Which of the training images count: those of the site's classes.
    """
    colours = [site.background, training.background[rows]]
    colours = [np.nanmedian(colour, axis=0) for colour in colours]
    colours = [np.where(np.isfinite(colour), colour, 255.0) for colour in colours]
    limited = [tuple(float(v) for v in np.clip(colour, 1, 255)) for colour in colours]
    return Appearance(background=limited[0], target=limited[1])


def _log_diameters(cells: FoundCells) -> Numbers:
    """Logarithm of the diameter of each whole cell, NaN for others."""
    return np.log(np.where(cells.is_whole, cells.cell_diameter, np.nan))


def _are_known(
    sizes: Sizes, diameters: Numbers, probabilities: Float[np.ndarray, "n classes"]
) -> bool:
    """Whether the size in training is known of a class that the site's cells may be of."""
    rows = np.isfinite(diameters)
    return bool(probabilities[rows][:, np.isfinite(sizes.logarithm)].any())


def _best_factor(
    diameters: Numbers, sizes: Sizes, probabilities: Float[np.ndarray, "n classes"]
) -> tuple[float, float, float]:
    """The factor of the size with the smallest misfit, that misfit, and the one without a change.

    The misfit is the mean distance between a cell's logarithm of the diameter and that of its
    class, over the classes by their probabilities.
    """
    rows = np.isfinite(diameters)
    known = np.isfinite(sizes.logarithm)
    weights = probabilities[rows][:, known].astype(np.float64)
    difference = diameters[rows, None] - sizes.logarithm[None, known]

    def misfit(shift: float) -> float:
        each = np.minimum(np.abs(difference + shift), _MOST_MISFIT)
        return float((each * weights).sum() / max(weights.sum(), 1e-12))

    shifts = np.linspace(-np.log(_LARGEST), np.log(_LARGEST), _STEPS)
    misfits = [misfit(shift) for shift in shifts]
    best = int(np.argmin(misfits))
    return float(np.exp(shifts[best])), misfits[best], misfit(0.0)


def _spread(values: Numbers) -> float:
    """Standard deviation of a normal distribution with the same median absolute deviation."""
    if not len(values):
        return float("nan")
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
