"""ConvNeXt against timm, torchvision and Keras."""

import jax
import pytest

from bloodjax.models.convnext import NETWORKS
from bloodjax.pretrained.name_maps.convnext import NAME_MAPS

STAGES = [f"stages.{i}" for i in range(4)]


@pytest.mark.full
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_equals_timm(timm, parity, name):
    reference = timm.create_model(name, num_classes=10)
    parity.check(reference, name, NAME_MAPS["timm"], STAGES, sizes=(96, 101))


@pytest.mark.full
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_gradients_equal_timm(timm, parity, name):
    reference = timm.create_model(name, num_classes=10)
    parity.check_gradients(reference, name, NAME_MAPS["timm"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    reference = timm.create_model(name, num_classes=10)
    parity.check(reference, name, NAME_MAPS["timm"], STAGES)


def check_torchvision(torchvision, parity, name, sizes):
    reference = torchvision.models.get_model(name, num_classes=10)
    stages = [f"features.{i}" for i in (1, 3, 5, 7)]
    parity.check(
        reference, name, NAME_MAPS["torchvision"], stages, variant="torchvision", sizes=sizes
    )


@pytest.mark.full
def test_equals_torchvision(torchvision, parity):
    check_torchvision(torchvision, parity, "convnext_tiny", (65,))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_every_network_equals_torchvision(torchvision, parity, size):
    check_torchvision(torchvision, parity, f"convnext_{size}", (224, 96, 101))


def check_keras(keras, parity, name, size):
    size_name = {"xlarge": "XLarge"}.get(name[9:], name[9:].capitalize())
    application = getattr(keras.applications, f"ConvNeXt{size_name}")
    with jax.numpy_rank_promotion("allow"):  # Keras runs on its JAX backend here
        reference = application(
            weights=None,
            include_preprocessing=False,
            input_shape=(size, size, 3),
            classes=10,
            classifier_activation=None,
        )
    # A stage ends in an addition, which is not a layer, so take the next layer's input.
    after = [f"downsampling_block_{i}" for i in range(3)] + ["head_gap"]
    ends = [reference.get_layer(f"{reference.name}_{layer}").input for layer in after]
    parity.check_keras(reference, name, ends, parity.images(size))


@pytest.mark.slow  # Keras takes long to build the network
@pytest.mark.parametrize("size", [224, 96, 101])
@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_base", "convnext_large"])
def test_every_network_equals_keras(keras, parity, name, size):
    check_keras(keras, parity, name, size)
