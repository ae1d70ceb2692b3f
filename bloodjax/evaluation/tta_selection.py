"""Selects weights for test-time augmentation's views on the validation split.

There are two methods; both minimise the negative log-likelihood of the true classes: greedy forward
selection with replacement (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432), and
free non-negative weights (after Shanmugam et al. 2021, "Better aggregation in test-time
augmentation", https://arxiv.org/abs/2011.11156). Both can select the image alone, so views that
increase the validation loss get no weight.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float, Int

from bloodjax.augment import views
from bloodjax.augment.tta import AVERAGES, TTAConfig
from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics import SMALLEST_PROBABILITY

FILE = "tta.json"
# Name in files of earlier versions -> name of the view.
_ALIASES = {"picture": views.IMAGE}
# Number of greedy selections; a view can be selected several times.
_ROUNDS = 50
# Free weights below this are set to 0: they are noise, and each view costs a forward pass.
_SMALLEST_WEIGHT = 0.01

Each = Float[np.ndarray, "views n classes"]
Labels = Int[np.ndarray, " n"]


def combine(
    each: Each, weights: Float[np.ndarray, " views"], average: str
) -> Float[np.ndarray, "n classes"]:
    """Averages class probabilities over the views, as `tta.probabilities` does.

    Args:
      each: Class probabilities for each view.
      weights: Weights of the views; they sum to 1.
      average: "probabilities" or "logits".
    """
    mean = np.tensordot(weights, _terms(each, average), axes=1)
    return scipy.special.softmax(mean, axis=-1) if average == "logits" else mean


def greedy(
    each: Each, labels: Labels, average: str, rounds: int = _ROUNDS
) -> Float[np.ndarray, " views"]:
    """Weights by greedy forward selection with replacement.

    Each round adds the view for which the mean of all selected views has the lowest loss. The
    result is the mean of the best round. Ties go to the earlier view and the earlier round.

    Args:
      each: Class probabilities for each view.
      labels: True class indices.
      average: "probabilities" or "logits".
      rounds: Number of rounds.
    """
    terms = _terms(each, average)
    counts = np.zeros(len(terms))
    total = np.zeros_like(terms[0])
    best, best_counts = np.inf, counts
    for selected in range(1, rounds + 1):
        losses = [_loss((total + term) / selected, labels, average) for term in terms]
        chosen = int(np.argmin(losses))
        counts[chosen] += 1
        total += terms[chosen]
        if losses[chosen] < best - 1e-12:
            best, best_counts = losses[chosen], counts.copy()
    return best_counts / best_counts.sum()


def free_weights(each: Each, labels: Labels, average: str) -> Float[np.ndarray, " views"]:
    """Optimal non-negative weights with a sum of 1; weights below 0.01 are set to 0.

    The problem is convex, because the likelihood is that of a mixture or of a logistic regression.
    It is solved by sequential least squares.

    Args:
      each: Class probabilities for each view.
      labels: True class indices.
      average: "probabilities" or "logits".
    """
    terms = _terms(each, average)
    true = terms[:, np.arange(len(labels)), labels]

    def loss(weights):
        mean = np.tensordot(weights, terms, axes=1)
        if average == "logits":
            expected = np.einsum("nc,vnc->vn", scipy.special.softmax(mean, axis=-1), terms)
            gradient = (expected - true).mean(axis=1)
        else:
            gradient = -(true / (weights @ true)).mean(axis=1)
        return _loss(mean, labels, average), gradient

    number = len(terms)
    found = scipy.optimize.minimize(
        loss,
        np.full(number, 1 / number),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * number,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 300, "ftol": 1e-9},
    ).x
    kept = np.where(found >= min(_SMALLEST_WEIGHT, found.max()), found, 0)
    return kept / kept.sum()


def select(
    each: Each, labels: Labels, name: str, average: str, method: str
) -> tuple[TTAConfig, dict[str, object]]:
    """Selects weights of views.

    Args:
      each: Class probabilities for each view of the sets `name`, in the order of `views.named`.
      labels: True class indices.
      name: Sets of views.
      average: "probabilities" or "logits".
      method: "greedy" or "weights".

    Returns:
      The views with their weights, and the content of `tta.json`.
    """
    choose = {"greedy": greedy, "weights": free_weights}[method]
    weights = choose(each, labels, average)
    names = list(views.named(name))
    kept = {names[i]: round(float(weights[i]), 6) for i in np.flatnonzero(weights)}
    number = len(names)
    candidates = {
        views.IMAGE: np.eye(number)[0],
        "mean": np.full(number, 1 / number),
        "selected": weights,
    }
    means = {choice: combine(each, w, average) for choice, w in candidates.items()}
    return TTAConfig(name, average, tuple(kept.items())), {
        "views": name,
        "average": average,
        "select": method,
        "n": len(labels),
        "weights": kept,
        "nll": {choice: _nll(p, labels) for choice, p in means.items()},
        "accuracy": {
            choice: float(np.mean(p.argmax(axis=1) == labels)) for choice, p in means.items()
        },
    }


def write(workdir: pathlib.Path, content: dict[str, object]) -> None:
    """Writes `tta.json`."""
    atomic_write(workdir / FILE, json.dumps(content, indent=2) + "\n")


def load(workdir: pathlib.Path) -> TTAConfig | None:
    """The views and weights in `tta.json`, or None if the run has no such file.

    Raises:
      UserError: The file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    return read_json(path, "views, average, and the weights of views with a sum of 1", _from_json)


def _from_json(content: Any) -> TTAConfig:
    weights = {_ALIASES.get(name, name): weight for name, weight in content["weights"].items()}
    config = TTAConfig(content["views"], content["average"], tuple(weights.items()))
    if not weights.keys() <= set(views.named(config.views)) or config.average not in AVERAGES:
        raise ValueError("an unknown view or average")
    if abs(sum(weights.values()) - 1) >= 1e-3 or min(weights.values()) <= 0:
        raise ValueError("weights with another sum, or none")
    return config


def _terms(each: Each, average: str) -> Each:
    """The terms that are averaged, in float64."""
    each = np.clip(each.astype(np.float64), SMALLEST_PROBABILITY, 1)
    return np.log(each) if average == "logits" else each


def _loss(mean: Float[np.ndarray, "n classes"], labels: Labels, average: str) -> float:
    rows = np.arange(len(labels))
    if average == "logits":
        return float((scipy.special.logsumexp(mean, axis=-1) - mean[rows, labels]).mean())
    return _nll(mean, labels)


def _nll(probabilities: Float[np.ndarray, "n classes"], labels: Labels) -> float:
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true, SMALLEST_PROBABILITY, 1)).mean())
