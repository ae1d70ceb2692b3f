import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.inception import NETWORKS
from bloodjax.pretrained import name_maps
from bloodjax.pretrained.merge import merge

from .parity import RUNNING

NAME = "inception_v3"

# timm's and torchvision's names of the last module of each stage.
_STAGES = ["Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"]
_LAYERS = ["activation_2", "activation_4", "mixed2", "mixed7", "mixed10"]


@pytest.mark.full
def test_parameters_as_published():
    assert list(NETWORKS) == [NAME]
    model = models.build(NAME, 1000, hidden=(), batch_norm=False)
    image = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert millions == pytest.approx(23.83, abs=0.01)


def _check_timm(timm, parity, sizes):
    reference = timm.create_model(NAME, num_classes=10, aux_logits=False)
    parity.check(
        reference, NAME, name_maps.name_map(models.architecture(NAME), "timm"), _STAGES, sizes=sizes
    )


def _check_torchvision(torchvision, parity, sizes):
    # In inference mode only: in training its auxiliary classifier needs images of 299 pixels.
    reference = torchvision.models.inception_v3(
        num_classes=10, aux_logits=True, transform_input=False, init_weights=False
    )
    assert any(name.startswith("AuxLogits") for name in reference.state_dict())
    table = name_maps.name_map(models.architecture(NAME), "torchvision")
    settings = {"variant": "torchvision", "sizes": sizes, "modes": RUNNING}
    parity.check(reference, NAME, table, _STAGES, **settings)


@pytest.mark.full
def test_equals_timm(timm, parity):
    _check_timm(timm, parity, (96,))


@pytest.mark.full
def test_equals_torchvision_whose_auxiliary_classifier_is_left_out(torchvision, parity):
    _check_torchvision(torchvision, parity, (101,))


@pytest.mark.slow
def test_equals_torch_at_every_size(timm, torchvision, parity):
    _check_timm(timm, parity, (299, 224, 101))
    _check_torchvision(torchvision, parity, (299, 224, 96))


@pytest.mark.slow  # Keras takes long to build the network
@pytest.mark.parametrize("size", [299, 224, 96, 101])
def test_equals_keras(keras, parity, size):
    reference = keras.applications.InceptionV3(
        input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None
    )
    parity.check_keras(reference, NAME, _LAYERS, parity.images(size))


def test_early_keras_counts_from_one():
    def target(source, name):
        table = name_maps.name_map(models.architecture(NAME), source)
        ours = {"params": {"backbone": {"stem_3b": {"kernel": np.ones((1, 1, 1, 1))}}}}
        return merge({name: np.zeros((1, 1, 1, 1))}, table, ours, location="a test")

    for source, name in (("keras", "conv2d_3/kernel"), ("keras_from_1", "conv2d_4/kernel")):
        assert not jax.tree.leaves(target(source, name)["params"])[0].any()
