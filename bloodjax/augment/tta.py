"""Test-time augmentation: one answer from an image's views (see `augment.views`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from bloodjax.augment import views

AVERAGES = ("probabilities", "logits")
SELECTED = "selected"
# Ways to choose the weights of views on the validation part; see `evaluation.tta_selection`.
METHODS = ("greedy", "weights")
# Views that run at once. More run one after another, in the memory of a single batch.
_AT_ONCE = 8

Forward = Callable[[UInt8[Array, "batch s s 3"]], Float[Array, "batch classes"]]


@dataclasses.dataclass(frozen=True)
class TTAConfig:
    """Which views an image is seen in, and how their answers become one.

    Attributes:
      views: sets of views, such as "none", "d4" or "d4+crops".
      average: of what the mean is taken: "probabilities", or "logits" (the normalised geometric
        mean of the probabilities).
      weights: name and weight of each view that counts, the weights with a sum of 1; where it is
        empty, all of them count the same.
      beside: give the answer to the image alone as well, beside that to the views.
    """

    views: str = "none"
    average: str = "probabilities"
    weights: tuple[tuple[str, float], ...] = ()
    beside: bool = False


def probabilities(
    forward: Forward, images: UInt8[Array, "batch s s 3"], plan: TTAConfig | str
) -> Float[Array, "batch *answers classes"]:
    """Class probabilities, averaged over views; views without a weight are not computed.

    Args:
      forward: images to logits.
      images: the images.
      plan: the views and their weights; sets of views alone are averaged equally, by probabilities.

    Returns:
      [batch, classes]; where the plan says "beside", [batch, 2, classes], the views' average first.
    """
    plan = TTAConfig(plan) if isinstance(plan, str) else plan
    every = views.named(plan.views)
    chosen = [name for name, _ in plan.weights] or list(every)
    alone = [views.PICTURE] if plan.beside and views.PICTURE not in chosen else []
    logits = _logits(forward, images, [every[name] for name in chosen + alone])
    by_logits = plan.average == "logits"
    each = jax.nn.log_softmax(logits, axis=-1) if by_logits else jax.nn.softmax(logits, axis=-1)
    each = each[: len(chosen)]
    if plan.weights:
        weights = jnp.asarray([weight for _, weight in plan.weights], each.dtype)
        mean = jnp.tensordot(weights, each, axes=1)
    else:
        mean = each.mean(axis=0)
    mean = jax.nn.softmax(mean, axis=-1) if by_logits else mean
    if not plan.beside:
        return mean
    plain = logits[(chosen + alone).index(views.PICTURE)]
    return jnp.stack([mean, jax.nn.softmax(plain, axis=-1)], axis=1)


def each_view(
    forward: Forward, images: UInt8[Array, "batch s s 3"], name: str
) -> Float[Array, "batch views classes"]:
    """Class probabilities in every view of the sets `name`, in the order of `views.named`."""
    logits = _logits(forward, images, views.named(name).values())
    return jax.nn.softmax(logits, axis=-1).swapaxes(0, 1)


def _logits(
    forward: Forward, images: UInt8[Array, "batch s s 3"], functions: Iterable[views.View]
) -> Float[Array, "views batch classes"]:
    pictures = jnp.stack([function(images) for function in functions])
    if len(pictures) <= _AT_ONCE:
        return jax.vmap(forward)(pictures)
    return lax.map(forward, pictures)
