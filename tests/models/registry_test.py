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


def test_an_unknown_flavour_is_an_error():
    with pytest.raises(UserError, match=r"no flavour 'caffe': expected one of .*timm"):
        models.build("convnext_atto", 8, flavour="caffe")
