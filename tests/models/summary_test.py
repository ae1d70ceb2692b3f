import pytest

from bloodjax.models import summary

# Millions of parameters and billions of multiply-adds at 224 px, from the papers and torchvision.
PUBLISHED = {
    "resnet_50": (25.56, 4.09),
    "vgg_16": (138.36, 15.47),
    "efficientnet_b0": (5.29, 0.39),
    "convnext_tiny": (28.59, 4.46),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_costs_are_those_published(name):
    millions, giga = PUBLISHED[name]
    assert summary.parameters(name) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert summary.flops(name, 224) / 2e9 == pytest.approx(giga, rel=0.02)
