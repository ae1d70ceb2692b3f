import pytest

from bloodjax import models
from bloodjax.models import summary

# Millions of parameters and billions of multiply-adds at 224 px, from the papers and torchvision.
PUBLISHED = {
    "resnet50": (25.56, 4.09),
    "vgg16": (138.36, 15.47),
    "efficientnet_b0": (5.29, 0.39),
    "convnext_tiny": (28.59, 4.46),
}


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_costs_are_those_published(name):
    millions, giga = PUBLISHED[name]
    assert summary.num_parameters(name) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert summary.flops(name, 224) / 2e9 == pytest.approx(giga, rel=0.02)


def test_training_is_three_forward_passes_of_what_is_trained():
    network = models.build("simple_cnn", 8, hidden=(16,))
    features = 256
    head = 2 * (features * 16 + 16 * 8)
    forward = summary.flops("simple_cnn", 32, 8) - 2 * features * 8 + head
    assert summary.training_flops(network, 32) == 3 * forward
    assert summary.training_flops(network, 32, "batchnorm") == 3 * forward
    assert summary.training_flops(network, 32, "backbone") == forward + 2 * head


def test_layer_types():
    types = summary.layer_types(models.build("efficientnet_b0", 8, hidden=(16,)), 32)
    assert types["backbone/stem"] == "convolution"
    assert types["backbone/stage_1_block_0/depthwise"] == "depthwise convolution"
    assert types["backbone/stage_1_block_0/expand"] == "pointwise convolution, dense"
    assert types["backbone/stage_1_block_0/expand_norm"] == "BatchNorm"
    assert types["head/dense_0"] == "pointwise convolution, dense"
    assert types["head/dropout_in"] == "dropout"
    assert "backbone/stage_1_block_0" not in types
    types = summary.layer_types(models.build("convnext_atto", 8), 32)
    assert types["backbone/stem_norm"] == "LayerNorm"
