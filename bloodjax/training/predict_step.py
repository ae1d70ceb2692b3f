"""Predictions and features as pure functions; `executor` compiles them."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, UInt8

from bloodjax.augment import geometry, tta
from bloodjax.training.step_config import StepConfig
from bloodjax.training.step_input import normalise


def predict_step(
    step_config: StepConfig,
    views: str | tta.TTAConfig,
    variables: PyTree,
    images: UInt8[Array, "batch size size 3"],
) -> Float[Array, "batch *answers classes"]:
    """Class probabilities of this device's images, averaged over `views` (`tta.probabilities`)."""
    output = step_config.objective.output
    return tta.probabilities(_forward(step_config, variables), images, views, output)


def views_step(
    step_config: StepConfig,
    views: str,
    variables: PyTree,
    images: UInt8[Array, "batch size size 3"],
) -> Float[Array, "batch views classes"]:
    """Class probabilities of this device's images in each of their `views`."""
    output = step_config.objective.output
    return tta.each_view(_forward(step_config, variables), images, views, output)


def features_step(
    step_config: StepConfig, variables: PyTree, images: UInt8[Array, "batch size size 3"]
) -> Float[Array, "batch views features"]:
    """Features of this device's images in each view that the augmentation policy may draw."""

    def forward(images):
        inputs = normalise(images, step_config.mean, step_config.std)
        return step_config.model.apply(variables, inputs, method="features")

    # One view after another needs the memory of one.
    return lax.map(forward, geometry.views(images, step_config.augment.views)).swapaxes(0, 1)


def describe_step(
    step_config: StepConfig, variables: PyTree, images: UInt8[Array, "batch size size 3"]
) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
    """Features and logits of this device's unmodified images, in float32."""
    model, inputs = step_config.model, normalise(images, step_config.mean, step_config.std)
    features = model.apply(variables, inputs, method="features")
    logits = model.apply(variables, features, method="classify")
    return features.astype(jnp.float32), logits


def _forward(step_config: StepConfig, variables: PyTree) -> tta.Forward:
    def forward(images):
        inputs = normalise(images, step_config.mean, step_config.std)
        return step_config.model.apply(variables, inputs)

    return forward
