"""Attribution methods: how much each position of an image contributes to the logit of a class.

All methods differentiate the logit in inference mode. A probability near 1 would have a gradient
near 0. All maps are non-negative: they show what raises the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from bloodjax.models.backbone import PERTURBATIONS
from bloodjax.models.head import Network

# Points on the path of `integrated_gradients`.
STEPS = 16

Inputs = Float[Array, "b h w 3"]
Classes = Int[Array, " b"]
Map = Float[Array, "b h w"]
Maps = dict[str, Float[Array, "b _ _ _"]]

INPUT = "input"


def gradients(
    model: Network, variables: PyTree, inputs: Inputs, classes: Classes
) -> tuple[Maps, Maps]:
    """The input and the maps at the ends of the stages, and the logits' gradients there.

    Args:
      model: The network.
      variables: Its variables.
      inputs: Normalised images.
      classes: Index of the class of each image.

    Returns:
      Maps and gradients, each under the names `INPUT`, `stage_0`, `stage_1`, ...
    """

    def forward(perturbations: Maps) -> tuple[Float[Array, ""], Maps]:
        stages = {name: value for name, value in perturbations.items() if name != INPUT}
        x = inputs + perturbations[INPUT] if INPUT in perturbations else inputs
        logits, collections = model.apply(
            {**variables, PERTURBATIONS: {"backbone": stages}}, x, mutable=["intermediates"]
        )
        maps = collections["intermediates"]["backbone"]
        # In inference mode no logit depends on another image of the batch.
        logit = jnp.take_along_axis(logits, classes[:, None], axis=1).sum()
        return logit, {INPUT: x, **{name: value[0] for name, value in maps.items()}}

    shapes = jax.eval_shape(forward, {})[1]
    zeros = {name: jnp.zeros(map_.shape, map_.dtype) for name, map_ in shapes.items()}
    found, maps = jax.grad(forward, has_aux=True)(zeros)
    return maps, found


def stage_names(maps: Mapping[str, object]) -> list[str]:
    """Names of the stages, the largest map first."""
    return [f"stage_{i}" for i in range(len(maps) - 1)]


def gradcam(model: Network, variables: PyTree, inputs: Inputs, classes: Classes) -> Map:
    """Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) of the last stage.

    The channels of the map, weighted by the mean over the map of their gradients.
    """
    maps, found = gradients(model, variables, inputs, classes)
    last = stage_names(maps)[-1]
    weights = found[last].mean(axis=(1, 2), keepdims=True)
    return _enlarged((weights * maps[last]).sum(axis=-1), inputs)


def layercam(model: Network, variables: PyTree, inputs: Inputs, classes: Classes) -> Map:
    """LayerCAM (Jiang et al., 2021, doi:10.1109/TIP.2021.3089943), the product over all stages.

    In LayerCAM each position of a map is weighted by its own positive gradient, so that maps of
    early stages, which are finer, can be used.
    """
    maps, found = gradients(model, variables, inputs, classes)
    product = jnp.ones(inputs.shape[:3], jnp.float32)
    for name in stage_names(maps):
        stage = (jax.nn.relu(found[name]) * maps[name]).sum(axis=-1)
        product *= _scaled(_enlarged(stage, inputs))
    return product


def integrated_gradients(
    model: Network, variables: PyTree, inputs: Inputs, classes: Classes
) -> Map:
    """Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365).

    The path leads from an image of one colour, the median of the image's border, to the image.
    """
    start = background(inputs)

    def add(step, total):
        point = start + (inputs - start) * ((step + 0.5) / STEPS)
        return total + gradients(model, variables, point, classes)[1][INPUT]

    total = lax.fori_loop(0, STEPS, add, jnp.zeros_like(inputs))
    return jax.nn.relu(((inputs - start) * total).sum(axis=-1) / STEPS)


def background(inputs: Inputs) -> Float[Array, "b 1 1 3"]:
    """The median colour of each image's border."""
    edges = (inputs[:, 0], inputs[:, -1], inputs[:, :, 0], inputs[:, :, -1])
    return jnp.median(jnp.concatenate(edges, axis=1), axis=1)[:, None, None]


def _enlarged(stage: Map, inputs: Inputs) -> Map:
    """The positive part of a stage's map, at the size of the images."""
    positive = jax.nn.relu(stage.astype(jnp.float32))
    return jax.image.resize(positive, inputs.shape[:3], "linear")


def _scaled(maps: Map) -> Map:
    """The maps, divided by their largest value."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


METHODS: dict[str, Callable[[Network, PyTree, Inputs, Classes], Map]] = {
    "layercam": layercam,
    "gradcam": gradcam,
    "integrated_gradients": integrated_gradients,
}
