import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.densenet import NETWORKS, DenseNet
from bloodjax.pretrained.merge import merge
from bloodjax.pretrained.name_maps.densenet import NAME_MAPS

from ..trees import assert_trees_equal
from .parity import MODES, RUNNING

# Millions of parameters with a classifier of 1000 classes, as torchvision publishes them.
MILLIONS = {
    "densenet121": 7.979,
    "densenet161": 28.681,
    "densenet169": 14.149,
    "densenet201": 20.014,
}
STAGES = [f"features.denseblock{i}" for i in (1, 2, 3, 4)]


@pytest.mark.full
@pytest.mark.parametrize("name", list(NETWORKS))
def test_parameter_counts(name):
    variables = jax.eval_shape(lambda: models.random_model(name)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.001)


@pytest.mark.full
def test_equals_torchvision(torchvision, parity):
    reference = torchvision.models.densenet121(num_classes=10)
    table = NAME_MAPS["torchvision"]
    parity.check(reference, "densenet121", table, STAGES, variant="torchvision", sizes=(101,))


def renamed(layer):
    """The tensor's name in torchvision's published files: "norm.1" for "norm1"."""
    return layer.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")


def test_the_published_files_names(torchvision, parity):
    reference = parity.randomised(torchvision.models.densenet121(num_classes=10))
    table = NAME_MAPS["torchvision"]
    _, expected = parity.from_torch(reference, "densenet121", table, variant="torchvision")
    tensors = {renamed(name): value.numpy() for name, value in reference.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in tensors
    found = merge(tensors, table, expected, location="renamed")
    assert_trees_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_every_network_equals_its_source(source, name, parity, request):
    library = request.getfixturevalue(source)
    create = library.create_model if source == "timm" else library.models.get_model
    reference = create(name, num_classes=10)
    modes = MODES if source == "timm" else RUNNING
    parity.check(reference, name, NAME_MAPS[source], STAGES, variant=source, modes=modes)


def check_keras(keras, parity, name, size):
    application = getattr(keras.applications, name.replace("densenet", "DenseNet"))
    reference = application(
        weights=None, classes=10, classifier_activation=None, input_shape=(size, size, 3)
    )
    ends = [f"conv{i + 2}_block{depth}_concat" for i, depth in enumerate(NETWORKS[name]["depths"])]
    parity.check_keras(reference, name, ends, parity.images(size))


@pytest.mark.slow  # Keras takes long to build the network
@pytest.mark.parametrize("size", [224, 96, 101])
def test_equals_keras(keras, parity, size):
    check_keras(keras, parity, "densenet121", size)


@pytest.fixture(scope="module")
def small():
    model = DenseNet(depths=(1, 2), growth=8, drop_path=0.5)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.full
def test_stochastic_depth_only_while_training(small, parity):
    model, variables = small
    x = jnp.tile(jnp.asarray(parity.images(32, batch=1)), (64, 1, 1, 1))
    calm = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(calm, jnp.broadcast_to(calm[:1], calm.shape), atol=1e-5)
    train = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    wild = jax.jit(train)(variables, x)
    # The last layer is left out half the time, the one before a quarter: four outcomes.
    assert len(np.unique(np.round(wild, 3), axis=0)) == 4


def test_bfloat16_keeps_float32_parameters(small, parity):
    model, variables = small
    half = model.clone(dtype=jnp.bfloat16)
    x = jnp.asarray(parity.images(32))
    # Flax's norms mix the two types.
    with jax.numpy_dtype_promotion("standard"):
        drawn = jax.eval_shape(half.init, jax.random.key(0), x)
        found = jax.jit(half.apply)(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    assert found.dtype == jnp.bfloat16
    expected = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.15)
