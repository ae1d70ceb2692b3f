import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.mobilenet import NETWORKS
from bloodjax.pretrained import name_maps
from bloodjax.pretrained.merge import merge

# Millions of parameters with 1000 classes, as the paper and Keras publish them.
MILLIONS = {"100": 4.23, "075": 2.59, "050": 1.33, "025": 0.47}

# Keras's last layer of each resolution.
_LAYERS = [f"conv_pw_{i}_relu" for i in (1, 3, 5, 11, 13)]


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, hidden=(), batch_norm=False)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert millions == pytest.approx(MILLIONS[name.rpartition("_")[2]], abs=0.01)


def _check_keras(keras, parity, name, size):
    reference = keras.applications.MobileNet(
        input_shape=(size, size, 3),
        alpha=NETWORKS[name]["multiplier"],
        weights=None,
        classes=10,
        classifier_activation=None,
    )
    parity.check_keras(reference, name, _LAYERS, parity.images(size))


# Even and odd maps are padded differently.
@pytest.mark.full
@pytest.mark.parametrize("size", [96, 101])
def test_equals_keras(keras, parity, size):
    _check_keras(keras, parity, "mobilenetv1_025", size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 96, 101])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_keras(keras, parity, name, size):
    _check_keras(keras, parity, name, size)


def _timm(timm, name):
    from timm.models.efficientnet import _gen_mobilenet_v1

    # timm registers only the full width, but its builder supports the others.
    return _gen_mobilenet_v1("mobilenetv1_100", NETWORKS[name]["multiplier"], num_classes=10)


def _check_timm(timm, parity, name, **settings):
    table = name_maps.name_map(models.architecture(name), "timm")
    parity.check(_timm(timm, name), name, table, [f"blocks.{i}" for i in range(5)], **settings)


@pytest.mark.full
def test_equals_timm(timm, parity):
    _check_timm(timm, parity, "mobilenetv1_025", sizes=(96, 101))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    _check_timm(timm, parity, name)


def test_keras_2_names_the_depthwise_kernels_otherwise():
    new = name_maps.name_map(models.architecture("mobilenetv1_100"), "keras")
    drawn = {"conv_dw_4/depthwise_kernel": np.zeros((3, 3, 8, 1), np.float32)}
    ours = {
        "params": {"backbone": {"stage_2_block_0": {"depthwise": {"kernel": np.ones((3, 3, 8))}}}}
    }
    merged = merge(drawn, new, ours, location="a test")
    assert not jax.tree.leaves(merged["params"])[0].any()
