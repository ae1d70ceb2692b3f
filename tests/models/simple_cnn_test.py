import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.simple_cnn import SimpleCNN

MODEL = SimpleCNN(depths=(1, 2), widths=(4, 6), drop_path=0.5)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 21, 21, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    return jax.jit(MODEL.init)(jax.random.key(0), images)


@pytest.mark.full
def test_stages_halve_the_map_and_are_averaged(variables, images):
    out, seen = MODEL.apply(variables, images, mutable=["intermediates"])
    maps = {name: value[0] for name, value in seen["intermediates"].items()}
    assert {name: value.shape for name, value in maps.items()} == {
        "stage_0": (3, 11, 11, 4),
        "stage_1": (3, 6, 6, 6),
    }
    np.testing.assert_allclose(out, maps["stage_1"].mean((1, 2)), rtol=1e-6)


def test_the_default_has_seven_convolutions():
    shapes = jax.eval_shape(SimpleCNN().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    kernels = [v["kernel"].shape for v in shapes["params"].values() if "kernel" in v]
    channels = [3, 32, 64, 64, 128, 128, 256, 256]
    assert sorted(kernels) == sorted((3, 3, a, b) for a, b in itertools.pairwise(channels))


def test_050_has_half_the_channels():
    assert models.build("simple_cnn_050", 8).backbone.depths == SimpleCNN().depths
    widths = models.build("simple_cnn_050", 8).backbone.widths
    assert tuple(2 * width for width in widths) == SimpleCNN().widths


@pytest.mark.parametrize("update_stats", [False, True])
def test_statistics_change_only_where_asked(variables, images, update_stats):
    _, updated = MODEL.apply(
        variables,
        images,
        train=True,
        update_stats=update_stats,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(1)},
    )
    before, after = variables["batch_stats"], updated["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert set(jax.tree.leaves(changed)) == {update_stats}


def test_dropout_of_the_features_only_while_training(variables, images):
    calm = MODEL.apply(variables, images)
    out = MODEL.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
    assert np.any(out == 0)
    assert np.all(np.isclose(out, 2 * calm, rtol=1e-5) | (out == 0))
