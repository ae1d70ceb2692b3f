"""Test-time augmentation: averages the predictions for an image's views (see `augment.views`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from bloodjax.augment import views
from bloodjax.metrics.calibration import Calibration

AVERAGES = ("probabilities", "logits")
SELECTED = "selected"
# Methods that weight the views on the validation split; see `evaluation.tta_selection`.
METHODS = ("greedy", "weights")
# Number of views that are computed at once. More are computed one after another, which takes the
# memory of a single batch; or if the batch is smaller than this, as many at once as make this many
# images.
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Output:
    """How logits become probabilities.

    Attributes:
      probabilities: Function from logits to probabilities, over the last axis.
      normalised: Function from logits to those that are averaged with `average` = "logits".
    """

    probabilities: Callable[[Array], Array]
    normalised: Callable[[Array], Array]


# Classes that exclude each other, and labels of which an image has any number.
SOFTMAX = Output(partial(jax.nn.softmax, axis=-1), partial(jax.nn.log_softmax, axis=-1))
SIGMOID = Output(jax.nn.sigmoid, lambda logits: logits)

Forward = Callable[[UInt8[Array, "batch s s 3"]], Float[Array, "batch classes"]]


@dataclasses.dataclass(frozen=True)
class TTAConfig:
    """The views of an image, and how their predictions are averaged.

    Attributes:
      views: Sets of views, such as "none", "d4" or "d4+crops".
      average: What is averaged: "probabilities", or "logits" (the normalised geometric mean of the
        probabilities; of the odds, if an image can have several labels).
      weights: Name and weight of each view that is used; weights sum to 1. If empty, all views have
        the same weight.
      with_plain: Whether to return the prediction for the unmodified image as well.
    """

    views: str = "none"
    average: str = "probabilities"
    weights: tuple[tuple[str, float], ...] = ()
    with_plain: bool = False


def probabilities(
    forward: Forward,
    images: UInt8[Array, "batch s s 3"],
    config: TTAConfig | str,
    output: Output = SOFTMAX,
) -> Float[Array, "batch *predictions classes"]:
    """Class probabilities, averaged over the views. Views without a weight are not computed.

    Args:
      forward: Function from images to logits.
      images: RGB images.
      config: The views and their weights. A string names sets of views, whose probabilities are
        averaged with equal weights.
      output: How logits become probabilities.

    Returns:
      [batch, classes]. With `config.with_plain`, [batch, 2, classes]: the average, and the
      prediction for the unmodified image.
    """
    config = TTAConfig(config) if isinstance(config, str) else config
    functions = views.named(config.views)
    chosen = [name for name, _ in config.weights] or list(functions)
    plain = [views.IMAGE] if config.with_plain and views.IMAGE not in chosen else []
    logits = _logits(forward, images, [functions[name] for name in chosen + plain])
    mean = average(logits[: len(chosen)], config, output)
    if not config.with_plain:
        return mean
    of_image = logits[(chosen + plain).index(views.IMAGE)]
    return jnp.stack([mean, output.probabilities(of_image)], axis=1)


def average(
    logits: Float[Array, "views batch classes"], config: TTAConfig, output: Output = SOFTMAX
) -> Float[Array, "batch classes"]:
    """Class probabilities, averaged over the views that `config` uses, in their order."""
    by_logits = config.average == "logits"
    each = output.normalised(logits) if by_logits else output.probabilities(logits)
    if config.weights:
        weights = jnp.asarray([weight for _, weight in config.weights], each.dtype)
        mean = jnp.tensordot(weights, each, axes=1)
    else:
        mean = each.mean(axis=0)
    return output.probabilities(mean) if by_logits else mean


def each_view(
    forward: Forward, images: UInt8[Array, "batch s s 3"], name: str, output: Output = SOFTMAX
) -> Float[Array, "batch views classes"]:
    """Class probabilities for every view of the sets `name`, in the order of `views.named`."""
    logits = _logits(forward, images, views.named(name).values())
    return output.probabilities(logits).swapaxes(0, 1)


def _logits(
    forward: Forward, images: UInt8[Array, "batch s s 3"], functions: Iterable[views.View]
) -> Float[Array, "views batch classes"]:
    functions = tuple(functions)
    if len(functions) <= _AT_ONCE:
        return _each(forward, jnp.stack([function(images) for function in functions]))
    batch = images.shape[0]
    # A program that is exported may have a batch of a size that is not known yet.
    most = max(1, _AT_ONCE // batch) if isinstance(batch, int) else 1
    group = max(n for n in range(1, most + 1) if len(functions) % n == 0)

    def some(indices):
        seen = lax.map(lambda index: lax.switch(index, functions, images), indices)
        return _each(forward, seen)

    indices = jnp.arange(len(functions), dtype=jnp.int32).reshape(-1, group)
    return lax.map(some, indices).reshape(len(functions), batch, -1)


def _each(forward, seen):
    """`forward` of several views, as one batch."""
    logits = forward(seen.reshape(-1, *seen.shape[2:]))
    return logits.reshape(*seen.shape[:2], -1)


def calibrate(
    log_p: Float[Array, "batch classes"], calibration: Calibration
) -> Float[Array, "batch classes"]:
    """`Calibration.apply` on the device, of the logarithms of probabilities.

    Args:
      log_p: Natural logarithms of class probabilities, finite.
      calibration: The calibration.

    Returns:
      Class probabilities, float32.
    """
    logits = log_p / jnp.float32(calibration.temperature)
    if calibration.scale:
        logits = logits * jnp.asarray(calibration.scale, jnp.float32)[None]
    if calibration.bias:
        logits = logits + jnp.asarray(calibration.bias, jnp.float32)[None]
    return jax.nn.softmax(logits, axis=-1)
