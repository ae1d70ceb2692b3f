"""What a trained network says of images, as pure functions; `executor` compiles them."""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float, PyTree, UInt8

from bloodjax.augment import geometry, tta
from bloodjax.training.train_step import StepConfig, normalise


def features_step(
    recipe: StepConfig, variables: PyTree, images: UInt8[Array, "batch size size 3"]
) -> Float[Array, "batch views features"]:
    """Features of this device's images in each view that may be drawn."""

    def forward(images):
        pictures = normalise(images, recipe.mean, recipe.std)
        return recipe.model.apply(variables, pictures, method="features")

    # One view after another: in the memory of one.
    return lax.map(forward, geometry.views(images, recipe.augment.views)).swapaxes(0, 1)


def predict_step(
    recipe: StepConfig,
    views: str | tta.TTAConfig,
    variables: PyTree,
    images: UInt8[Array, "batch size size 3"],
) -> Float[Array, "batch *answers classes"]:
    """Class probabilities of this device's images, as `tta.probabilities` has them."""
    return tta.probabilities(_forward(recipe, variables), images, views)


def views_step(
    recipe: StepConfig, views: str, variables: PyTree, images: UInt8[Array, "batch size size 3"]
) -> Float[Array, "batch views classes"]:
    """Class probabilities of this device's images in each of their `views`."""
    return tta.each_view(_forward(recipe, variables), images, views)


def _forward(recipe: StepConfig, variables: PyTree) -> tta.Forward:
    def forward(images):
        return recipe.model.apply(variables, normalise(images, recipe.mean, recipe.std))

    return forward
