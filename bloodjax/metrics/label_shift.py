"""Shares of the classes at another site, estimated without labels.

Both methods assume label shift: the site has the classes in other proportions, and within a class
its images are like the training images. On images that look otherwise the estimates are biased,
which a large difference between the two methods shows.

  likelihood  The shares that make the classifier's calibrated probabilities most likely, by EM
              (Saerens, Latinne and Decaestecker 2002, Adjusting the outputs of a classifier to new
              a priori probabilities, https://doi.org/10.1162/089976602753284446). On calibrated
              probabilities it is better than the other methods (Alexandari, Kundaje and Shrikumar
              2020, https://arxiv.org/abs/1901.06852).
  confusion   The shares that explain how often each class is predicted, given how often images of
              each class are predicted as which in validation (Lipton, Wang and Smola 2018,
              https://arxiv.org/abs/1802.03916).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy
from jaxtyping import Float, Int

# Images like the training images that count besides those of the site. They keep every share
# above 0: that no image of a class is among n does not prove that there is none.
_PRIOR_IMAGES = 1.0
_MAX_ITERATIONS, _TOLERANCE = 2000, 1e-7
# EM starts at the estimate for all images, so that a resample needs fewer iterations.
_RESAMPLE_ITERATIONS = 30
_RESAMPLED_AT_ONCE = 2**22  # entries (float64) of the largest table: 32 MB

Probabilities = Float[np.ndarray, "n classes"]
Shares = Float[np.ndarray, " classes"]


@dataclasses.dataclass(frozen=True)
class LabelShift:
    """Estimated shares of the classes at a site; all arrays have one value per class.

    Attributes:
      training: Shares for which the classifier's probabilities are right.
      site: Shares at the site, by likelihood.
      low: Lower end of the 95 % interval of `site`, by bootstrap over the site's images.
      high: Upper end.
      by_confusion: Shares at the site by the other method.
    """

    training: Shares
    site: Shares
    low: Shares
    high: Shares
    by_confusion: Shares

    @property
    def ratio(self) -> Shares:
        """Share at the site divided by share in training; 1 for a class that training lacks."""
        ones = np.ones_like(self.site)
        return np.divide(self.site, self.training, out=ones, where=self.training > 0)

    @property
    def disagreement(self) -> float:
        """Half of the summed differences between the two methods' shares, 0..1."""
        return float(np.abs(self.site - self.by_confusion).sum() / 2)


def estimate(
    probabilities: Probabilities,
    training: Shares,
    validation: Float[np.ndarray, "m classes"],
    labels: Int[np.ndarray, " m"],
    *,
    bootstrap: int = 100,
    seed: int = 0,
) -> LabelShift:
    """Estimates the shares by both methods.

    Args:
      probabilities: Calibrated class probabilities of at least one image of the site. A class that
        cannot occur there has the probability 0 in every image.
      training: Shares of the classes for which the probabilities are right, sum 1: those in
        training, unless the loss weights the classes.
      validation: Calibrated class probabilities of validation images, of the same classes.
      labels: True class indices of these.
      bootstrap: Number of resamples, at least 1.
      seed: Seed of the resamples.
    """
    site = by_likelihood(probabilities, training)
    resamples = _resampled(probabilities, training, site, bootstrap, seed)
    low, high = np.percentile(resamples, [2.5, 97.5], axis=0)
    return LabelShift(
        training=np.asarray(training, np.float64),
        site=site,
        low=np.minimum(low, site),
        high=np.maximum(high, site),
        by_confusion=by_confusion(probabilities, validation, labels),
    )


def by_likelihood(probabilities: Probabilities, training: Shares) -> Shares:
    """The shares of largest posterior probability, above 0 for each class that can occur.

    One image that is like the training images counts besides those of the site.

    Args:
      probabilities: As for `estimate`.
      training: As for `estimate`.
    """
    probabilities = probabilities.astype(np.float64)
    shares = _start(probabilities, training)
    counts = np.ones((1, len(probabilities)))
    for _ in range(_MAX_ITERATIONS):
        new = _em_step(probabilities, counts, training, shares[None])[0]
        if np.abs(new - shares).max() < _TOLERANCE:
            return new
        shares = new
    return shares


def by_confusion(
    probabilities: Probabilities,
    validation: Float[np.ndarray, "m classes"],
    labels: Int[np.ndarray, " m"],
) -> Shares:
    """The shares with which validation's rows of confusion best give the predicted classes.

    Args:
      probabilities: As for `estimate`.
      validation: As for `estimate`.
      labels: As for `estimate`. A class without an image counts as always recognised.
    """
    classes = probabilities.shape[1]
    can_occur = probabilities.max(axis=0) > 0
    confusion = np.eye(classes)
    predicted = np.where(can_occur, validation, -1).argmax(axis=1)
    for label in np.unique(labels):
        confusion[label] = np.bincount(predicted[labels == label], minlength=classes)
        confusion[label] /= confusion[label].sum()
    observed = np.bincount(probabilities.argmax(axis=1), minlength=classes) / len(probabilities)
    # The last row makes the shares sum to 1.
    rows = np.concatenate([confusion.T, np.full((1, classes), 10.0)])[:, can_occur]
    found = np.zeros(classes)
    found[can_occur] = scipy.optimize.nnls(rows, np.append(observed, 10.0))[0]
    return found / found.sum()


def _start(probabilities: Probabilities, training: Shares) -> Shares:
    """Shares to start from: those of training among the classes that can occur."""
    shares = np.where(probabilities.max(axis=0) > 0, np.maximum(training, 1e-6), 0)
    return shares / shares.sum()


def _em_step(
    probabilities: Probabilities,
    counts: Float[np.ndarray, "r n"],
    training: Shares,
    shares: Float[np.ndarray, "r classes"],
) -> Float[np.ndarray, "r classes"]:
    """One step of EM for r resamples, of which each image counts `counts` times."""
    prior = _start(probabilities, training)
    ratio = shares / np.maximum(training, 1e-6)
    total = ratio @ probabilities.T
    expected = ratio * ((counts / np.maximum(total, 1e-300)) @ probabilities)
    expected += _PRIOR_IMAGES * prior
    return expected / expected.sum(axis=1, keepdims=True)


def _resampled(
    probabilities: Probabilities, training: Shares, start: Shares, bootstrap: int, seed: int
) -> Float[np.ndarray, "bootstrap classes"]:
    n, rng = len(probabilities), np.random.default_rng(seed)
    probabilities = probabilities.astype(np.float64)
    at_once = max(1, _RESAMPLED_AT_ONCE // n)
    found = []
    for first in range(0, bootstrap, at_once):
        r = min(at_once, bootstrap - first)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=r).astype(np.float64)
        shares = np.repeat(start[None], r, axis=0)
        for _ in range(_RESAMPLE_ITERATIONS):
            shares = _em_step(probabilities, counts, training, shares)
        found.append(shares)
    return np.concatenate(found)
