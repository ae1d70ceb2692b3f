"""A network's last layer, fitted to labelled cells of a site and to training cells.

The layer is a multinomial logistic regression with a normal prior around the run's own weights (the
maximum a posteriori estimate; Chelba and Acero 2004, Adaptation of maximum entropy capitalizer:
little data can help a lot). A few cells of the site change it little, and the training cells keep
it from forgetting the classes that the site's cells do not show.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Bool, Float, Int, PyTree

from bloodjax.evaluation.classifier import Classifier

# Standard deviation, in the prior, of the change of a typical cell's logit.
_CHANGE = 3.0
_STEPS = 200  # L-BFGS iterations, at most
_LAYER, _INPUT = "logits", "dropout_out"  # names in `models.head.Head`


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
      kernel: Weight of each input for each class.
      bias: Bias of each class.
    """

    kernel: Float[np.ndarray, "inputs classes"]
    bias: Float[np.ndarray, " classes"]

    def logits(self, inputs: Float[np.ndarray, "*n inputs"]) -> Float[np.ndarray, "*n classes"]:
        """Logits of each class."""
        return inputs @ self.kernel + self.bias


@dataclasses.dataclass(frozen=True)
class Cells:
    """Labelled cells as inputs of the layer.

    Attributes:
      inputs: The layer's input for each view of each cell.
      labels: Class index of each cell.
    """

    inputs: Float[np.ndarray, "n views inputs"]
    labels: Int[np.ndarray, " n"]

    def take(self, index: np.ndarray) -> Cells:
        """The cells at `index` (int [m] or bool [n])."""
        return Cells(self.inputs[index], self.labels[index])


def of_network(variables: PyTree) -> Layer:
    """The last layer of a network with these variables."""
    layer = variables["params"]["head"][_LAYER]
    return Layer(*(np.asarray(layer[name], np.float64) for name in ("kernel", "bias")))


def into_network(layer: Layer, variables: PyTree) -> PyTree:
    """The variables with another last layer."""
    params, head = variables["params"], variables["params"]["head"]
    new = {name: np.asarray(getattr(layer, name), np.float32) for name in ("kernel", "bias")}
    return {**variables, "params": {**params, "head": {**head, _LAYER: new}}}


def inputs(
    model: Classifier, features: Float[np.ndarray, "n features"]
) -> Float[np.ndarray, "n inputs"]:
    """What the last layer gets: the features, or the last hidden layer of the head."""
    network, predictor = model.predictor.step_config.model, model.predictor
    _, captured = network.apply(
        predictor.variables,
        jnp.asarray(features),
        method="classify",
        capture_intermediates=lambda module, _: module.name == _INPUT,
        mutable=["intermediates"],
    )
    return np.asarray(captured["intermediates"]["head"][_INPUT]["__call__"][0], np.float64)


def fit(
    layer: Layer,
    site: Cells,
    home: Cells,
    shares: Float[np.ndarray, " classes"],
    possible: Bool[np.ndarray, " classes"],
) -> Layer:
    """Fits the layer's kernel to cells of both; those of the site and of training count alike.

    The bias stays: with a bias of their own, a few cells change how often a class is predicted.

    The probabilities are those for classes as frequent as in training, whatever the shares of the
    classes among the cells are: the loss adds the logarithm of their ratio to the logits (Menon et
    al. 2021, arXiv:2007.07314).

    Args:
      layer: The run's own layer, the mean of the prior.
      site: Labelled cells of the site, at least one.
      home: Training cells; every class has some.
      shares: Share of each class in training; sums to 1.
      possible: The classes that can occur at the site.
    """
    parts, n = [], len(site.labels)
    for cells, allowed in ((site, possible), (home, np.ones_like(possible))):
        views = cells.inputs.shape[1]
        rows = cells.inputs.reshape(-1, cells.inputs.shape[-1])
        found = np.bincount(cells.labels, minlength=len(shares)) / len(cells.labels)
        # A class without cells keeps its share: that it is missing says nothing.
        ratio = np.log(np.where(found > 0, found, shares) / shares)
        offset = layer.logits(rows) + np.where(allowed, ratio, -np.inf)
        targets = np.eye(len(shares))[np.repeat(cells.labels, views)]
        parts.append((rows, offset, targets, n / len(rows)))
    deviation = home.inputs[:, 0] - home.inputs[:, 0].mean(axis=0)
    precision = np.square(deviation).sum(axis=1).mean() / _CHANGE**2

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = flat.reshape(layer.kernel.shape)
        value, gradient = precision / 2 * np.square(change).sum(), precision * change
        for rows, offset, targets, weight in parts:
            logs = scipy.special.log_softmax(offset + rows @ change, axis=1)
            value -= weight * np.where(targets > 0, logs, 0).sum()
            gradient += rows.T @ (weight * (np.exp(logs) - targets))
        return value, gradient.ravel()

    start = np.zeros(layer.kernel.size)
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}
    )
    return Layer(layer.kernel + found.x.reshape(layer.kernel.shape), layer.bias)
