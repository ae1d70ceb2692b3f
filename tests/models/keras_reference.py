"""Keras networks with random weights."""

import functools

import jax
import numpy as np

from .random_inputs import images, kernel_std


def _randomise(layer, rng):
    """Randomises the weights of a Keras layer."""
    if type(layer).__name__ == "Normalization":
        return  # the normalisation of the images
    for weight in layer.weights:
        shape, name = tuple(weight.shape), weight.name
        if name == "kernel":
            depthwise = type(layer).__name__ == "DepthwiseConv2D"
            fan_in = np.prod(shape[: 2 if depthwise else -1])
            weight.assign(kernel_std(layer.name, fan_in) * rng.standard_normal(shape))
        elif name in ("gamma", "moving_variance") or type(layer).__name__ == "LayerScale":
            weight.assign(rng.uniform(0.7, 1.3, shape))
        else:
            weight.assign(rng.normal(0.0, 0.1, shape))


def apply(model, x, training):
    """Returns a Keras model's outputs, and its updated non-trainable variables."""
    call = jax.jit(functools.partial(model.stateless_call, training=training))
    variables = (model.trainable_variables, model.non_trainable_variables)
    return call(*([variable.value for variable in each] for each in variables), x)


def prepared(model, size, scale):
    """Randomises all weights of a Keras model, and returns them by `layer/variable`."""
    rng = np.random.default_rng(0)
    # Some of ConvNeXt's layers are in nested models.
    layers = [inner for outer in model.layers for inner in getattr(outer, "layers", [outer])]
    norms = [layer for layer in layers if type(layer).__name__ == "BatchNormalization"]
    for layer in layers:
        _randomise(layer, rng)
    if norms:  # as in `torch_reference.calibrated`
        for norm in norms:
            norm.momentum = 0.0
        _, state = apply(model, images(size, batch=8) * scale, training=True)
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        for norm in norms:
            mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
            about = rng.uniform(-0.3, 0.3, (2, *mean.shape))
            norm.moving_mean.assign(mean + about[0] * variance**0.5)
            norm.moving_variance.assign(variance * (1 + about[1]))
    return {f"{layer.name}/{w.name}": np.asarray(w) for layer in layers for w in layer.weights}
