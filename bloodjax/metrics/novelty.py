"""Scores that say how unlike the training images an image is.

They are computed from a network's features and logits, and from the image's colours and textures.
Each method is fitted to training images, and gives larger scores to more unlike images:

"mahalanobis": squared Mahalanobis distance to the nearest class mean under a covariance that the
  classes share (Lee et al. 2018, https://arxiv.org/abs/1807.03888), of features scaled to length 1
  (Müller and Hein 2025, https://arxiv.org/abs/2505.18032).
"relative_mahalanobis": the same minus the distance under one Gaussian of all classes (Ren et al.
  2021, https://arxiv.org/abs/2106.09022).
"knn": distance to the fifth nearest training image, of features scaled to length 1 (Sun et al.
  2022, https://arxiv.org/abs/2204.06507).
"energy": the negative log of the sum of the exponentials of the logits (Liu et al. 2020,
  https://arxiv.org/abs/2010.03759).
"combined": a weighted sum of "mahalanobis", "energy", "relative_mahalanobis" and the Mahalanobis
  distance of colours and textures. Each is standardised on images of the known kind that it was not
  fitted to. The first and the last enter as cube roots, which makes a squared distance nearly
  normal (Wilson and Hilferty 1931, https://doi.org/10.1073/pnas.17.12.684). The other two are
  bounded, because some known images have very large values of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

# Directions in which a covariance is estimated in full; in all others it is one variance.
_RANK = 128
_NEIGHBOURS = 5
_ROWS = 1024  # images compared with the stored ones at once; bounds the memory
_SMALLEST_VARIANCE = 1e-12  # of features of length 1: below, they are constant
# Weight and largest value of each part of "combined": mahalanobis, energy, relative_mahalanobis,
# colours and textures. Another stain or lamp changes the last much, also where the network still
# answers well, so its weight is small.
_WEIGHTS, _BOUNDS = np.array([1, 1, 1, 0.2]), np.array([np.inf, 2, 2, np.inf])
_UPPER = 0.84  # the quantile of a normal distribution that is one standard deviation above 0
_SMALLEST_SPREAD = 1e-3  # of a part of "combined", as a share of its median
# Images are of another kind if so many times the expected share is above the threshold, and the
# probability of it by chance is below this.
_FAR_ABOVE, _BY_CHANCE = 3, 1e-3

Arrays = Mapping[str, np.ndarray]
Features = Float[np.ndarray, "n features"]
Logits = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]


class Description(NamedTuple):
    """What images are compared by.

    Attributes:
      features: Features of the network.
      logits: Logits of the network.
      appearance: Colours and textures of the images, in units of the same size.
    """

    features: Features
    logits: Logits
    appearance: Float[np.ndarray, "n statistics"]

    def take(self, rows: np.ndarray) -> Description:
        """The images at `rows`: indices, or a flag for each image."""
        return Description(*(values[rows] for values in self))

    @property
    def finite(self) -> Bool[np.ndarray, " n"]:
        """Whether all values of an image are finite."""
        return np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in self])


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to score images.

    Attributes:
      fit: (finite features of training images, their labels) -> what is kept, as named arrays.
      score: (these arrays, images) -> scores.
      complete: (these arrays, training images, their labels, other images of the known kind) -> the
        arrays, with what else is kept; None if that is nothing.
    """

    fit: Callable[[Features, Labels], dict[str, np.ndarray]]
    score: Callable[[Arrays, Description], Scores]
    complete: Callable[[Arrays, Description, Labels, Description], dict[str, np.ndarray]] | None = (
        None
    )


def fit(
    method: str, known: Description, labels: Labels, others: Description
) -> dict[str, np.ndarray]:
    """What a method keeps, as named arrays; see `fit_all`."""
    return _fit([method], known, labels, others)[method]


def fit_all(
    known: Description, labels: Labels, others: Description
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> what it keeps, as named arrays.

    Args:
      known: At least one training image, whose values are finite.
      labels: Class indices of the training images.
      others: At least one other image of the known kind, whose values are finite: their scores
        show what is usual for an image that a method was not fitted to.
    """
    return _fit(list(METHODS), known, labels, others)


def score(method: str, arrays: Arrays, images: Description) -> Scores:
    """Scores of images, larger for more unlike; infinite where a value is not finite.

    Args:
      method: A key of `METHODS`.
      arrays: What `fit` returned for this method.
      images: The images.
    """
    finite = images.finite
    scores = np.full(len(finite), np.inf)
    if finite.any():
        usable = Description(*(np.float64(values[finite]) for values in images))
        scores[finite] = METHODS[method].score(arrays, usable)
    return scores


def threshold(scores: Float[np.ndarray, " n"], rate: float) -> float:
    """The lowest score of known images that at most a share `rate` of them exceeds.

    Args:
      scores: Scores of at least one known image.
      rate: In 0..1.
    """
    return float(np.sort(scores)[len(scores) - 1 - _allowed(rate, len(scores))])


def expected_share(rate: float, known: int | None = None) -> float:
    """Mean share of new images of the known kind whose score is above the `threshold`.

    That is more than `rate`, by what the choice of a threshold on few images leaves to chance.

    Args:
      rate: What `threshold` was given.
      known: Number of scores that it was given; None for very many.
    """
    return rate if known is None else (_allowed(rate, known) + 1) / (known + 1)


def are_unlike(rejected: int, n: int, rate: float, known: int | None = None) -> bool:
    """Whether so many images are above the `threshold` that they are not of the known kind.

    They are if the share is more than three times the expected one, and less than one in a thousand
    sets of images of the known kind has so many. Their number has a beta-binomial distribution,
    because the threshold is an order statistic of scores (Wilks 1942,
    https://doi.org/10.1214/aoms/1177731537).

    Args:
      rejected: Number of images above the threshold.
      n: Number of images.
      rate: What `threshold` was given.
      known: Number of scores that it was given; None for very many.
    """
    if n == 0 or rejected <= _FAR_ABOVE * expected_share(rate, known) * n:
        return False
    if known is None:
        chance = scipy.stats.binom.sf(rejected - 1, n, rate)
    else:
        above = _allowed(rate, known)
        chance = scipy.stats.betabinom.sf(rejected - 1, n, above + 1, known - above)
    return bool(chance < _BY_CHANCE)


def _allowed(rate: float, known: int) -> int:
    """How many of the known images are above the threshold."""
    return min(int(rate * known + 1e-9), known - 1)


def auroc(known: Float[np.ndarray, " n"], unknown: Float[np.ndarray, " m"]) -> float:
    """Probability that an unknown image has a higher score than a known one; ties count half.

    Args:
      known: Scores of at least one known image.
      unknown: Scores of at least one unknown image.
    """
    n, m = len(known), len(unknown)
    ranks = scipy.stats.rankdata(np.concatenate([known, unknown]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def unit(features: Features) -> Features:
    """The features scaled to length 1; zeros stay zeros."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def _fit(
    methods: list[str], known: Description, labels: Labels, others: Description
) -> dict[str, dict[str, np.ndarray]]:
    # Methods that keep the same are fitted once.
    fits = {METHODS[name].fit for name in methods}
    fitted = {one: one(known.features, labels) for one in fits}
    found = {}
    for name in methods:
        found[name], complete = fitted[METHODS[name].fit], METHODS[name].complete
        if complete is not None:
            found[name] = complete(found[name], known, labels, others)
    return found


def _fit_unit_gaussians(features: Features, labels: Labels) -> dict[str, np.ndarray]:
    return _fit_gaussians(unit(np.float64(features)), labels)


def _fit_gaussians(x: Features, labels: Labels) -> dict[str, np.ndarray]:
    """One Gaussian for each class, with a shared covariance, and one of all classes."""
    classes = np.unique(labels)
    means = np.stack([x[labels == c].mean(axis=0) for c in classes])
    basis = _principal_directions(x - x.mean(axis=0))
    of_image, centre = means[np.searchsorted(classes, labels)], x.mean(axis=0)
    covariance, other = _shrunk_covariance(*_parts(x - of_image, basis), x.shape[1])
    # Of all images: the same and the scatter of the classes' means, so that it is nowhere narrower.
    inside, outside = _parts(of_image - centre, basis)
    total = covariance + inside.T @ inside / len(x)
    total_other = other + outside.mean() / max(x.shape[1] - basis.shape[1], 1)
    arrays = {
        "basis": basis,
        "class_means": means,
        "class_whitening": _whitening(covariance),
        "class_other_variance": np.array(other),
        "all_means": centre[None],
        "all_whitening": _whitening(total),
        "all_other_variance": np.array(total_other),
    }
    return {name: np.float32(values) for name, values in arrays.items()}


def _whitening(covariance: Float[np.ndarray, "rank rank"]) -> Float[np.ndarray, "rank rank"]:
    """The matrix w for which x @ w has unit covariance."""
    lower = np.linalg.cholesky(covariance)
    return scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).T


def _principal_directions(centred: Features) -> Float[np.ndarray, "features rank"]:
    """Orthonormal directions of the largest variance, by a randomised SVD of fixed seed.

    Halko et al. 2011, https://arxiv.org/abs/0909.4061. It costs a few products with the features,
    where a network may have 2,048 of them.
    """
    n, width = centred.shape
    rank = min(_RANK, n, width)
    columns = min(rank + 16, n, width)
    sketch = centred @ np.random.default_rng(0).normal(size=(width, columns))
    for _ in range(2):
        rows, _ = np.linalg.qr(sketch)
        sketch = centred @ (centred.T @ rows)
    rows, _ = np.linalg.qr(sketch)
    return np.linalg.svd(rows.T @ centred, full_matrices=False)[2][:rank].T


def _parts(
    differences: Features, basis: Float[np.ndarray, "features rank"]
) -> tuple[Float[np.ndarray, "n rank"], Scores]:
    """Coordinates in the basis, and the squared length of the rest."""
    inside = differences @ basis
    squared = (differences**2).sum(axis=1) - (inside**2).sum(axis=1)
    return inside, np.maximum(squared, 0)


def _shrunk_covariance(
    inside: Float[np.ndarray, "n rank"], outside: Scores, width: int
) -> tuple[Float[np.ndarray, "rank rank"], float]:
    """Covariance in the basis and the variance of every other direction.

    They are shrunk towards one variance for all directions by the amount of the oracle
    approximating estimator (Chen et al. 2010, https://doi.org/10.1109/TSP.2010.2053029).
    """
    n, rank = inside.shape
    covariance, rest = inside.T @ inside / n, outside.mean()
    trace = np.trace(covariance) + rest
    mean = trace / width
    if mean < _SMALLEST_VARIANCE:  # constant features: every difference counts the same
        return np.eye(rank), 1.0
    others = max(width - rank, 1)
    squares = (covariance**2).sum() + rest**2 / others
    distance = (n + 1 - 2 / width) * (squares - trace**2 / width)
    needed = (1 - 2 / width) * squares + trace**2
    shrinkage = 1.0 if distance <= needed else needed / distance
    covariance = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(rank)
    other = (1 - shrinkage) * rest / others + shrinkage * mean
    floor = max(mean * 1e-6, _SMALLEST_VARIANCE)
    return covariance + floor * np.eye(rank), max(other, floor)


def _gaussian_distances(
    arrays: Arrays, name: str, x: Features, projected: Float[np.ndarray, "n rank"]
) -> Float[np.ndarray, "n means"]:
    means, whitening = (np.float64(arrays[f"{name}_{key}"]) for key in ("means", "whitening"))
    centres = means @ np.float64(arrays["basis"])
    squared = _squared_distances(x, means)
    inside = _squared_distances(projected, centres)
    outside = np.maximum(squared - inside, 0) / float(arrays[f"{name}_other_variance"])
    return _squared_distances(projected @ whitening, centres @ whitening) + outside


def _squared_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.maximum(squares, 0)


def _nearest_class(arrays: Arrays, x: Features) -> Scores:
    projected = x @ np.float64(arrays["basis"])
    return _gaussian_distances(arrays, "class", x, projected).min(axis=1)


def _both_distances(arrays: Arrays, x: Features) -> tuple[Scores, Scores]:
    """Squared distances to the nearest class mean, and under the Gaussian of all images."""
    projected = x @ np.float64(arrays["basis"])
    background = _gaussian_distances(arrays, "all", x, projected)[:, 0]
    return _gaussian_distances(arrays, "class", x, projected).min(axis=1), background


def _score_mahalanobis(arrays: Arrays, images: Description) -> Scores:
    return _nearest_class(arrays, unit(images.features))


def _score_relative(arrays: Arrays, images: Description) -> Scores:
    nearest, background = _both_distances(arrays, unit(images.features))
    return nearest - background


def _fit_neighbours(features: Features, labels: Labels) -> dict[str, np.ndarray]:
    # Of a class of fewer images than neighbours, no image would have enough near it.
    smallest = np.unique(labels, return_counts=True)[1].min()
    k = np.array(min(_NEIGHBOURS, smallest), np.int64)
    return {"stored": np.float32(unit(np.float64(features))), "k": k}


def _score_neighbours(arrays: Arrays, images: Description) -> Scores:
    stored, k = np.float64(arrays["stored"]), int(arrays["k"])
    x, scores = unit(images.features), np.empty(len(images.features))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        squared = _squared_distances(x[rows], stored)
        scores[rows] = np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return scores


def _fit_nothing(features: Features, labels: Labels) -> dict[str, np.ndarray]:
    del features, labels
    return {}


def _score_energy(arrays: Arrays, images: Description) -> Scores:
    del arrays
    return -scipy.special.logsumexp(images.logits, axis=1)


def _complete_combined(
    arrays: Arrays, known: Description, labels: Labels, others: Description
) -> dict[str, np.ndarray]:
    """Adds Gaussians of the appearance, and each part's median and spread on other images."""
    appearance = _fit_gaussians(np.float64(known.appearance), labels)
    found = {**arrays, **{f"appearance_{name}": part for name, part in appearance.items()}}
    parts = _parts_of_combined(found, Description(*map(np.float64, others)))
    median, upper = np.quantile(parts, (0.5, _UPPER), axis=0)
    smallest = np.maximum(_SMALLEST_SPREAD * np.abs(median), _SMALLEST_SPREAD)
    spread = np.maximum(upper - median, smallest)
    standard = {"median": median, "spread": spread, "weights": _WEIGHTS, "bounds": _BOUNDS}
    return found | standard


def _parts_of_combined(arrays: Arrays, images: Description) -> Float[np.ndarray, "n 4"]:
    prefix = "appearance_"
    appearance = {
        name.removeprefix(prefix): part for name, part in arrays.items() if name.startswith(prefix)
    }
    nearest, background = _both_distances(arrays, unit(images.features))
    return np.stack(
        [
            np.cbrt(nearest),
            _score_energy(arrays, images),
            nearest - background,
            np.cbrt(_nearest_class(appearance, images.appearance)),
        ],
        axis=1,
    )


def _score_combined(arrays: Arrays, images: Description) -> Scores:
    parts = _parts_of_combined(arrays, images)
    standardised = (parts - arrays["median"]) / arrays["spread"]
    return np.minimum(standardised, arrays["bounds"]) @ arrays["weights"]


METHODS: dict[str, Method] = {
    "combined": Method(_fit_unit_gaussians, _score_combined, _complete_combined),
    "mahalanobis": Method(_fit_unit_gaussians, _score_mahalanobis),
    "relative_mahalanobis": Method(_fit_unit_gaussians, _score_relative),
    "knn": Method(_fit_neighbours, _score_neighbours),
    "energy": Method(_fit_nothing, _score_energy),
}
