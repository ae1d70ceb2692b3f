import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.models.resnet import NETWORKS, ResNet
from bloodjax.pretrained.merge import merge
from bloodjax.pretrained.name_maps.resnet import NAME_MAPS

from .parity import DOUBLE, MODES, RUNNING

# Millions of parameters with a classifier of 1000 classes, as torchvision publishes them.
MILLIONS = {
    "resnet18": 11.690,
    "resnet34": 21.798,
    "resnet50": 25.557,
    "resnet101": 44.549,
    "resnet152": 60.193,
}
STAGES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.full
@pytest.mark.parametrize("name", list(NETWORKS))
def test_parameter_counts(name):
    variables = jax.eval_shape(lambda: models.random_model(name)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.001)


@pytest.mark.full
def test_equals_torchvision(torchvision, parity):
    reference = torchvision.models.resnet18(num_classes=10)
    table = NAME_MAPS["torchvision"]
    parity.check(reference, "resnet18", table, STAGES, variant="torchvision", sizes=(96, 101))


def test_bottlenecks_equal_timm(timm, parity):
    reference = timm.create_model("resnet50", num_classes=10)
    parity.check(reference, "resnet50", NAME_MAPS["timm"], STAGES, sizes=(65,))


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
    application = getattr(keras.applications, name.replace("resnet", "ResNet"))
    reference = application(
        weights=None, classes=10, classifier_activation=None, input_shape=(size, size, 3)
    )
    ends = [f"conv{i + 2}_block{depth}_out" for i, depth in enumerate(NETWORKS[name]["depths"])]
    parity.check_keras(reference, name, ends, parity.images(size), bgr=True)


@pytest.mark.full
def test_equals_keras(keras, parity):
    check_keras(keras, parity, "resnet50", 101)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize("size", [224, 96, 101])
def test_every_network_equals_keras(keras, parity, name, size):
    check_keras(keras, parity, name, size)


@pytest.mark.full
def test_gradients_equal_torch(torchvision, parity):
    reference = torchvision.models.resnet18(num_classes=10)
    table = NAME_MAPS["torchvision"]
    parity.check_gradients(reference, "resnet18", table, variant="torchvision")


@pytest.mark.slow
def test_a_bottlenecks_gradients_equal_timm(timm, parity):
    reference = timm.create_model("resnet50", num_classes=10)
    parity.check_gradients(reference, "resnet50", NAME_MAPS["timm"], size=96, modes=DOUBLE)


def test_a_foreign_table_is_refused(parity):
    _, shapes = parity.linear("resnet18", "timm")
    tensors = {"conv1/kernel": np.zeros((7, 7, 3, 64), np.float32)}
    with pytest.raises(UserError, match=r"1 unexpected \(conv1/kernel\)"):
        merge(tensors, NAME_MAPS["timm"], shapes, location="here")


@pytest.fixture(scope="module")
def small():
    model = ResNet(depths=(1, 2), widths=(8, 16), bottleneck=False, drop_path=0.5)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.full
def test_stochastic_depth_only_while_training(small, parity):
    model, variables = small
    x = jnp.tile(parity.images(32, batch=1), (64, 1, 1, 1))
    calm = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(calm, jnp.broadcast_to(calm[:1], calm.shape), atol=1e-5)
    train = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    wild = jax.jit(train)(variables, x)
    # The last block is left out half the time, the one before a quarter: four outcomes.
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


def test_the_small_variant_keeps_the_resolution_of_its_stem(make_config):
    network = models.architecture("resnet18").linear(10, variant="small")
    shape = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3))))
    assert variables["params"]["backbone"]["stem"]["kernel"].shape == (3, 3, 3, 64)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    # MedMNIST's ResNet-18 for 10 classes, as of kuangliu's for CIFAR-10: 11,173,962 parameters.
    assert count == 11_173_962
    assert jax.eval_shape(network.apply, variables, shape).shape == (1, 10)
    sizes = {"data.image_size": 28, "model.name": "resnet18"}
    with pytest.raises(UserError, match="expected at least 32"):
        make_config(**sizes)
    assert make_config(**sizes, **{"model.variant": "small"}).data.image_size == 28
