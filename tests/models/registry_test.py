import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.models.convnext import SIZES


def test_names_are_sorted_and_hold_every_size():
    assert models.names() == sorted(models.names())
    assert {f"convnextv2_{size}" for size in SIZES} - set(models.names()) == {"convnextv2_xlarge"}


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'convnext_bse': did you mean 'convnext_base'\?"):
        models.build("convnext_bse", 8)
    with pytest.raises(UserError, match=r"'zzz': expected one of convnext_atto, .*simple_cnn"):
        models.create_model("zzz")


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


def test_create_model_gives_float32_logits_and_the_same_weights_every_time():
    model, variables = models.create_model("simple_cnn", num_classes=5)
    assert set(variables) == {"params", "batch_stats"}
    x = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    assert np.all(np.isfinite(logits))
    _, again = models.create_model("simple_cnn", num_classes=5)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_what_is_given_is_not_drawn():
    model, variables = models.create_model("simple_cnn", num_classes=5)
    given = {"params": {"backbone": variables["params"]["backbone"]}}
    found = models.draw(model, given=given)
    assert jax.tree.leaves(found["params"]["backbone"])[0] is jax.tree.leaves(given)[0]
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    other = models.draw(model, seed=1)
    assert np.any(
        other["params"]["head"]["logits"]["kernel"]
        != variables["params"]["head"]["logits"]["kernel"]
    )


def test_an_unknown_flavour_is_an_error():
    with pytest.raises(UserError, match=r"no flavour 'caffe': expected one of .*timm"):
        models.build("convnext_atto", 8, flavour="caffe")


def test_linear_is_the_network_as_published():
    model = models.linear("vgg_11", 5, flavour="timm", top=True)
    assert (model.head.hidden, model.head.num_classes) == ((), 5)
    assert model.backbone.top
    assert model.backbone.sliding


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("convnext_atto", [16, 8, 4, 2], [40, 80, 160, 320]),
        ("resnet_50", [16, 8, 4, 2], [256, 512, 1024, 2048]),
        ("vgg_11_bn", [64, 32, 16, 8, 4], [64, 128, 256, 512, 512]),
        ("mobilenet_v1_025", [32, 16, 8, 4, 2], [16, 32, 64, 128, 256]),
        ("densenet_121", [16, 8, 4, 2], [256, 512, 1024, 1024]),
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


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "densenet_121",
        "efficientnet_b0",
        "inception_v3",
        "mobilenet_v1_025",
        "resnet_18",
        "simple_cnn",
        "vgg_11",
    ],
)
def test_the_smallest_pictures_leave_something_of_every_map(name):
    size = models.smallest(name)
    model = models.linear(name, 3)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(functools.partial(models.stages, model), variables, x)
    assert all(side >= 1 for m in maps for side in m.shape)


def test_stages_lead_to_the_features():
    model, variables = models.create_model("convnext_atto", 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    last = models.stages(model, variables, x)[-1].mean(axis=(1, 2))
    norm, head = variables["params"]["backbone"]["norm"], variables["params"]["head"]["logits"]
    last = (last - last.mean(axis=1, keepdims=True)) / jnp.sqrt(last.var(axis=1)[:, None] + 1e-6)
    logits = (last * norm["scale"][None] + norm["bias"][None]) @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, model.apply(variables, x), rtol=1e-4, atol=1e-5)
