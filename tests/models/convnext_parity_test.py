"""ConvNeXt against timm, torchvision and Keras."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.models.convnext import NETWORKS
from bloodjax.pretrained.merge import flatten, merge
from bloodjax.pretrained.rules.convnext import RULES

STAGES = [f"stages.{i}" for i in range(4)]


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_equals_timm(timm, parity, name):
    reference = timm.create_model(name, num_classes=10)
    parity.check(reference, name, RULES["timm"], STAGES, sizes=(96, 101))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    if name == "convnext_huge":
        pytest.skip("timm has it in V2 only")
    reference = timm.create_model(name, num_classes=10)
    parity.check(reference, name, RULES["timm"], STAGES)


def check_torchvision(torchvision, parity, name, sizes):
    reference = torchvision.models.get_model(name, num_classes=10)
    stages = [f"features.{i}" for i in (1, 3, 5, 7)]
    # `train` would turn its stochastic depth on; there is no BatchNorm.
    for module in reference.modules():
        if isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 0.0
    parity.check(reference, name, RULES["torchvision"], stages, flavour="torchvision", sizes=sizes)


def test_equals_torchvision(torchvision, parity):
    check_torchvision(torchvision, parity, "convnext_tiny", (65,))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_every_network_equals_torchvision(torchvision, parity, size):
    check_torchvision(torchvision, parity, f"convnext_{size}", (224, 96, 101))


def keras_reference(keras, name, size):
    """Keras's network with every tensor drawn anew, and its tensors by `layer/variable`."""
    application = getattr(keras.applications, f"ConvNeXt{name.partition('_')[2].capitalize()}")
    if name.endswith("xlarge"):
        application = keras.applications.ConvNeXtXLarge
    model = application(
        weights=None,
        include_preprocessing=False,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
    )
    rng = np.random.default_rng(0)
    tensors = {}
    layers = [inner for layer in model.layers for inner in getattr(layer, "layers", [layer])]
    for weight, layer in ((weight, layer) for layer in layers for weight in layer.weights):
        shape = tuple(weight.shape)
        name = "gamma" if "layer_scale" in layer.name else weight.name
        if name == "kernel":
            value = rng.normal(0.0, (1.4 / np.prod(shape[:-1])) ** 0.5, shape)
        else:
            value = rng.normal(1.0 if name == "gamma" else 0.0, 0.1, shape)
        tensors[f"{layer.name}/{name}"] = value.astype(np.float32)
        weight.assign(tensors[f"{layer.name}/{name}"])
    return model, tensors
