import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.models.convnext import SIZES
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN

from ..trees import assert_trees_equal


def test_names_are_sorted_and_hold_every_size():
    names = models.list_models()
    assert names == sorted(names)
    assert {f"convnextv2_{size}" for size in SIZES} - set(names) == {"convnextv2_xlarge"}


def test_list_models_filters_by_a_pattern():
    assert models.list_models("resnet[15]?") == ["resnet18", "resnet50"]
    assert models.list_models("*_bn") == ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    assert models.list_models("nothing*") == []


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("resnet50", "resnet50"),
        # The names of bloodjax before it took timm's.
        ("resnet_50", "resnet50"),
        ("vgg_16_bn", "vgg16_bn"),
        ("densenet_121", "densenet121"),
        ("mobilenet_v1_100", "mobilenetv1_100"),
        # Keras's.
        ("ResNet50", "resnet50"),
        ("ConvNeXtBase", "convnext_base"),
        ("ConvNeXtXLarge", "convnext_xlarge"),
        ("EfficientNetB0", "efficientnet_b0"),
        ("EfficientNetV2S", "efficientnetv2_s"),
        ("MobileNet", "mobilenetv1_100"),
        ("InceptionV3", "inception_v3"),
        ("VGG16", "vgg16"),
        ("DenseNet121", "densenet121"),
        # timm's names of the variant "tf", and torchvision's spelling.
        ("tf_efficientnet_lite0", "efficientnet_lite0"),
        ("efficientnet_v2_s", "efficientnetv2_s"),
    ],
)
def test_aliases_are_understood_wherever_a_name_is(alias, name):
    assert models.canonical_name(alias) == name
    assert models.architecture(alias) is models.architecture(name)
    assert models.linear(alias, 3) == models.linear(name, 3)


def test_every_name_is_its_own_canonical_name():
    assert [models.canonical_name(name) for name in models.list_models()] == models.list_models()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'convnext_bse': did you mean 'convnext_base'\?"):
        models.build("convnext_bse", 8)
    with pytest.raises(UserError, match=r"'zzz': expected one of convnext_atto, .*simple_cnn"):
        models.random_model("zzz")
    with pytest.raises(UserError, match=r"'ResNet5': did you mean 'resnet50'\?"):
        models.linear("ResNet5")


def test_build_passes_everything_on():
    model = models.build(
        "convnext_atto",
        8,
        drop_path=0.1,
        axis_name="data",
        dtype=jnp.bfloat16,
        hidden=(16,),
        dropout=(0.1, 0.2),
    )
    for part in (model.backbone, model.head):
        assert part.axis_name == "data"
        assert part.dtype == jnp.bfloat16
    assert model.backbone.drop_path == 0.1
    assert (model.head.num_classes, model.head.hidden) == (8, (16,))
    assert model.head.dropout == (0.1, 0.2)


def test_random_model_gives_float32_logits_and_the_same_weights_every_time():
    model, variables = models.random_model("simple_cnn", num_classes=5)
    assert set(variables) == {"params", "batch_stats"}
    x = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    assert np.all(np.isfinite(logits))
    _, again = models.random_model("simple_cnn", num_classes=5)
    assert_trees_equal(variables, again)


def test_initial_variables_are_those_of_a_fully_optimised_program():
    """`init_variables` compiles with less optimisation, which must not change a bit."""
    model = Network(SimpleCNN(depths=(1, 2), widths=(8, 16)), Head(5, hidden=(16,)))
    found = models.init_variables(model, size=16, seed=3)
    images = jnp.zeros((1, 16, 16, 3), jnp.float32)
    expected = jax.jit(model.init)(jax.random.key(3), images)
    assert_trees_equal(found, expected)


@pytest.mark.full
def test_given_modules_are_not_initialised():
    model, variables = models.random_model("simple_cnn", num_classes=5)
    given = {"params": {"backbone": variables["params"]["backbone"]}}
    found = models.init_variables(model, given=given)
    assert jax.tree.leaves(found["params"]["backbone"])[0] is jax.tree.leaves(given)[0]
    assert_trees_equal(found, variables)
    other = models.init_variables(model, seed=1)
    assert np.any(
        other["params"]["head"]["logits"]["kernel"]
        != variables["params"]["head"]["logits"]["kernel"]
    )


def test_an_unknown_variant_is_an_error():
    with pytest.raises(UserError, match=r"no variant 'caffe': expected one of .*timm"):
        models.build("convnext_atto", 8, variant="caffe")


def test_linear_is_the_network_as_published():
    model = models.linear("vgg11", 5, variant="timm", top=True)
    assert (model.head.hidden, model.head.num_classes) == ((), 5)
    assert model.backbone.top
    assert model.backbone.sliding


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("convnext_atto", [16, 8, 4, 2], [40, 80, 160, 320]),
        ("resnet50", [16, 8, 4, 2], [256, 512, 1024, 2048]),
        ("vgg11_bn", [64, 32, 16, 8, 4], [64, 128, 256, 512, 512]),
        ("mobilenetv1_025", [32, 16, 8, 4, 2], [16, 32, 64, 128, 256]),
        ("densenet121", [16, 8, 4, 2], [256, 512, 1024, 1024]),
        ("efficientnet_b0", [32, 16, 8, 4, 4, 2, 2], [16, 24, 40, 80, 112, 192, 320]),
    ],
)
def test_stages_are_the_maps_of_each_resolution(name, sides, channels):
    model = models.linear(name, 3)
    x = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(functools.partial(models.stages, model), variables, x)
    expected = [(2, side, side, c) for side, c in zip(sides, channels, strict=True)]
    assert [m.shape for m in maps] == expected


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "densenet121",
        "efficientnet_b0",
        "inception_v3",
        "mobilenetv1_025",
        "resnet18",
        "simple_cnn",
        "vgg11",
    ],
)
def test_the_smallest_images_leave_something_of_every_map(name):
    size = models.architecture(name).min_image_size
    model = models.linear(name, 3)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(functools.partial(models.stages, model), variables, x)
    assert all(side >= 1 for m in maps for side in m.shape)


@pytest.mark.full
def test_stages_lead_to_the_features():
    model, variables = models.random_model("convnext_atto", 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    last = jax.jit(models.stages, static_argnums=0)(model, variables, x)[-1].mean(axis=(1, 2))
    norm, head = variables["params"]["backbone"]["norm"], variables["params"]["head"]["logits"]
    last = (last - last.mean(axis=1, keepdims=True)) / jnp.sqrt(last.var(axis=1)[:, None] + 1e-6)
    logits = (last * norm["scale"][None] + norm["bias"][None]) @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), rtol=1e-4, atol=1e-5)
