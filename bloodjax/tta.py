"""Test-time augmentation: the mean of the probabilities over a picture's views."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, UInt8

from bloodjax.augment.geometry import views


def probabilities(
    forward: Callable[[UInt8[Array, "batch s s 3"]], Float[Array, "batch classes"]],
    images: UInt8[Array, "batch s s 3"],
    name: str,
) -> Float[Array, "batch classes"]:
    """Class probabilities, averaged over views.

    Args:
      forward: pictures to logits.
      images: the pictures.
      name: "none" (the picture alone), "flip" (4 views: both flips) or "d4" (8: flips and quarter
        turns).
    """
    logits = jax.vmap(forward)(views(images, name))
    return jax.nn.softmax(logits, axis=-1).mean(axis=0)
