"""Attribution methods: how much each position of an image contributes to the logit of a class.

All methods differentiate the logit in inference mode. A probability near 1 would have a gradient
near 0. All maps are non-negative: they show what raises the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from bloodjax.models.backbone import PERTURBATIONS
from bloodjax.models.head import Network

# Stages whose maps are multiplied. On rendered cells, products of fewer are coarser than the cell,
# and of more mark single pixels and have worse deletion and insertion curves (docs/explain.md).
STAGES = 4
# Intervals on the path of the integrals, for the maps of stages and for the input.
STAGE_STEPS = 8
INPUT_STEPS = 32

Inputs = Float[Array, "b h w 3"]
Classes = Int[Array, " b"]
Map = Float[Array, "b h w"]
Maps = dict[str, Float[Array, "b _ _ _"]]

INPUT = "input"


def stages(model: Network, variables: PyTree, inputs: Inputs) -> list[str]:
    """Names of the last `STAGES` stages, or of all if there are fewer; the largest map first."""
    found = jax.eval_shape(lambda v, x: _forward(model, v, x, {})[1], variables, inputs)
    return [f"stage_{i}" for i in range(len(found) - 1)][-STAGES:]


def gradients(
    model: Network, variables: PyTree, inputs: Inputs, classes: Classes, names: Collection[str]
) -> tuple[Maps, Maps]:
    """Maps of the network, and the gradients of the classes' logits with respect to them.

    Args:
      model: The network.
      variables: Its variables.
      inputs: Normalised images.
      classes: Index of the class of each image.
      names: Which maps: `INPUT` or `stage_0`, `stage_1`, ..., the maps at the ends of the stages.

    Returns:
      Maps and gradients by name.
    """

    def logit(perturbations: Maps) -> tuple[Float[Array, ""], Maps]:
        logits, maps = _forward(model, variables, inputs, perturbations)
        # In inference mode no logit depends on another image of the batch.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), maps

    shapes = jax.eval_shape(logit, {})[1]
    zeros = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names}
    found, maps = jax.grad(logit, has_aux=True)(zeros)
    return {name: maps[name] for name in names}, found


def _forward(
    model: Network, variables: PyTree, inputs: Inputs, perturbations: Mapping[str, Array]
) -> tuple[Float[Array, "b classes"], Maps]:
    """Logits and maps, with arrays added to some of the maps."""
    stages = {name: value for name, value in perturbations.items() if name != INPUT}
    x = inputs + perturbations[INPUT] if INPUT in perturbations else inputs
    logits, collections = model.apply(
        {**variables, PERTURBATIONS: {"backbone": stages}}, x, mutable=["intermediates"]
    )
    maps = collections["intermediates"]["backbone"]
    return logits, {INPUT: x, **{name: value[0] for name, value in maps.items()}}


def contributions(
    model: Network,
    variables: PyTree,
    inputs: Inputs,
    classes: Classes,
    names: Collection[str],
    steps: int,
) -> dict[str, Float[Array, "b _ _"]]:
    """What each position of maps adds to the logits, compared with an image without a cell.

    The change of a map between the two images, times its gradient averaged over the straight path
    between them, summed over channels. For the input this is integrated gradients (Sundararajan et
    al., 2017, arXiv:1703.01365): its sum is the difference between the logits of the two images, up
    to the error of the sum over steps. The image without a cell has one colour, see `background`.

    Args:
      model: The network.
      variables: Its variables.
      inputs: Normalised images.
      classes: Index of the class of each image.
      names: Which maps, as for `gradients`.
      steps: Number of intervals on the path.
    """
    start = jnp.broadcast_to(background(inputs), inputs.shape)

    def add(step, sums):
        """Adds a point of the path by the trapezoidal rule. At its ends the map counts too."""
        point = start + (inputs - start) * (step.astype(jnp.float32) / steps)
        maps, found = gradients(model, variables, point, classes, names)
        is_end = (step == 0) | (step == steps)
        weight = jnp.where(is_end, 0.5, 1.0) / steps
        sign = jnp.where(step == steps, 1.0, jnp.where(step == 0, -1.0, 0.0))
        mean, change = sums
        return (
            {name: mean[name] + weight * found[name] for name in names},
            {name: change[name] + sign * maps[name] for name in names},
        )

    shapes = jax.eval_shape(lambda v, x: _forward(model, v, x, {})[1], variables, inputs)
    zeros = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names}
    mean, change = lax.fori_loop(0, steps + 1, add, (zeros, zeros))
    return {name: (change[name] * mean[name]).sum(axis=-1) for name in names}


def background(inputs: Inputs) -> Float[Array, "b 1 1 3"]:
    """The median colour of each image's border, which is mostly what surrounds the cell."""
    edges = (inputs[:, 0], inputs[:, -1], inputs[:, :, 0], inputs[:, :, -1])
    return jnp.median(jnp.concatenate(edges, axis=1), axis=1)[:, None, None]


def gradcam(model: Network, variables: PyTree, inputs: Inputs, classes: Classes) -> Map:
    """Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) of the last stage.

    The channels of the map, weighted by their mean gradients.
    """
    last = stages(model, variables, inputs)[-1]
    maps, found = gradients(model, variables, inputs, classes, [last])
    weights = found[last].mean(axis=(1, 2), keepdims=True)
    return _enlarged((weights * maps[last]).sum(axis=-1), inputs)


def layercam(model: Network, variables: PyTree, inputs: Inputs, classes: Classes) -> Map:
    """LayerCAM (Jiang et al., 2021, doi:10.1109/TIP.2021.3089943), the product of stages.

    In LayerCAM each position of a map is weighted by its own positive gradient, so that the finer
    maps of early stages can be used. The paper takes the maximum of several stages, which is as
    coarse as the last one. The product, as in Guided Grad-CAM (Selvaraju et al., 2017), is as fine
    as the first and keeps what all stages agree on.
    """
    names = stages(model, variables, inputs)
    maps, found = gradients(model, variables, inputs, classes, names)
    return _product(
        [(jax.nn.relu(found[name]) * maps[name]).sum(axis=-1) for name in names], inputs
    )


def integrated_cam(model: Network, variables: PyTree, inputs: Inputs, classes: Classes) -> Map:
    """The product over stages of their positive `contributions`.

    Like `layercam`, but the gradient is averaged over a path, as in Integrated Grad-CAM
    (Sattarzadeh et al., 2021, arXiv:2102.07805), and what the map of an image without a cell has
    too does not count. Networks whose stages end in a linear layer (EfficientNet) or a sum
    (ConvNeXt) have maps of both signs, and the gradient at one point says little about them.
    """
    names = stages(model, variables, inputs)
    found = contributions(model, variables, inputs, classes, names, STAGE_STEPS)
    return _product([found[name] for name in names], inputs)


def integrated_gradients(
    model: Network, variables: PyTree, inputs: Inputs, classes: Classes
) -> Map:
    """The positive part of integrated gradients, see `contributions`."""
    found = contributions(model, variables, inputs, classes, [INPUT], INPUT_STEPS)
    return jax.nn.relu(found[INPUT])


def _product(maps: list[Float[Array, "b _ _"]], inputs: Inputs) -> Map:
    """The product of the positive parts, each enlarged and scaled to a largest value of 1.

    A stage without a positive part is left out. Where no position is positive in all the others,
    the result is their mean.
    """
    parts = [scaled(_enlarged(stage, inputs)) for stage in maps]
    product = jnp.ones(inputs.shape[:3], jnp.float32)
    for part in parts:
        product *= jnp.where(part.any(axis=(1, 2), keepdims=True), part, 1)
    is_known = jnp.stack([part.any(axis=(1, 2), keepdims=True) for part in parts]).any(axis=0)
    product = jnp.where(is_known, product, 0)
    mean = jnp.stack(parts).mean(axis=0)
    return jnp.where(product.any(axis=(1, 2), keepdims=True), product, mean)


def _enlarged(stage: Float[Array, "b _ _"], inputs: Inputs) -> Map:
    """The positive part of a stage's map, at the size of the images."""
    positive = jax.nn.relu(stage.astype(jnp.float32))
    return jax.image.resize(positive, inputs.shape[:3], "linear")


def scaled(maps: Map) -> Map:
    """The maps, divided by their largest value unless it is 0."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


METHODS: dict[str, Callable[[Network, PyTree, Inputs, Classes], Map]] = {
    "integrated_cam": integrated_cam,
    "layercam": layercam,
    "gradcam": gradcam,
    "integrated_gradients": integrated_gradients,
}
