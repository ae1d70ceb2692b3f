"""Tests of bloodjax/pretrained/terms.py."""

import json

import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained import terms
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, HALF, IMAGENET


def test_weights_named_as_the_default_share_its_terms():
    default = DEFAULTS["mobilenet_v1_100"]
    found = terms.assumed("mobilenet_v1_100", "a.pth", "timm", default)
    assert (found.location, found.rules, found.flavour) == ("a.pth", "timm", default.flavour)
    assert (found.mean, found.std, found.size) == (default.mean, default.std, default.size)
    # Whose licence they have is not known.
    assert found.licence == ""


# From the `preprocess_input` of each of `keras.applications`.
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mobilenet_v1_100", 0.5, 0.5),
        ("inception_v3", 0.5, 0.5),
        ("vgg_16", 123.68 / 255, 1 / 255),
        ("resnet_50", 123.68 / 255, 1 / 255),
        ("densenet_121", 0.485, 0.229),
        ("efficientnet_b0", 0.485, 0.229),
        ("convnext_tiny", 0.485, 0.229),
    ],
)
def test_keras_feeds_each_family_its_own_way(name, mean, std):
    found = terms.assumed(name, "a.h5", "keras", DEFAULTS.get(name))
    assert (found.mean[0], found.std[0]) == pytest.approx((mean, std))
    assert found.flavour == ("tf" if name.startswith("efficientnet") else "keras")


def test_torchvision_normalises_by_imagenets_statistics():
    found = terms.assumed("efficientnet_b0", "a.pth", "torchvision", None)
    assert (found.mean, found.std) == IMAGENET


def test_lite_networks_take_minus_one_to_one():
    assert terms.assumed("efficientnet_lite3", "a.pth", "flat", None).mean == HALF[0]


def hub_config(**changes):
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 240, 240]}
    config |= {"interpolation": "bilinear", "license": "mit", **changes}
    return {"architecture": "tf_efficientnet_b1", "num_classes": 1000, "pretrained_cfg": config}


def test_what_timm_states_is_taken(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hub_config()))
    found = terms.from_timm("efficientnet_b1", "hf:a/b", "timm", path)
    assert (found.mean, found.std, found.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 240)
    assert (found.interpolation, found.licence, found.flavour) == ("bilinear", "mit", "tf")


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps(hub_config(mean=["x"]))])
def test_what_timm_did_not_write_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"hf:a/b: config\.json is not timm's"):
        terms.from_timm("efficientnet_b1", "hf:a/b", "timm", path)
