import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.vgg import NETWORKS, VGG, adaptive_avg_pool
from bloodjax.pretrained import name_maps

from .parity import RUNNING

# Millions of parameters with 1000 classes, as torchvision publishes them.
MILLIONS = {"vgg11": 132.86, "vgg13": 133.05, "vgg16": 138.36, "vgg19": 143.67}
MILLIONS |= {"vgg11_bn": 132.87, "vgg13_bn": 133.05, "vgg16_bn": 138.37, "vgg19_bn": 143.68}


def _stages(name):
    """The modules before the max pools, in both of PyTorch's libraries."""
    ends, index = [], -1
    for depth in NETWORKS[name]["depths"]:
        index += depth * (3 if NETWORKS[name]["norm"] else 2)
        ends.append(f"features.{index}")
        index += 1
    return ends


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, top=True, hidden=(), batch_norm=False)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert millions == pytest.approx(MILLIONS[name], abs=0.01)


@pytest.mark.parametrize("size", [(3, 3), (7, 7), (8, 5), (14, 1)])
def test_adaptive_pooling_equals_torch(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *size, 4)).astype(np.float32)
    pool = torch.nn.AdaptiveAvgPool2d((7, 6))
    expected = pool(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(adaptive_avg_pool(jnp.asarray(x), (7, 6)), expected, atol=1e-6)


def test_without_the_dense_layers_features_are_averages():
    model = models.build("vgg11", 10, hidden=(), batch_norm=False)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert "top_0" not in shapes["backbone"]
    assert shapes["head"]["logits"]["kernel"].shape == (512, 10)


def _check_torchvision(torchvision, parity, name, sizes):
    build = getattr(torchvision.models, name)
    reference = build(num_classes=10, dropout=0.0, init_weights=False)
    table = name_maps.name_map(models.architecture(name), "torchvision")
    settings = {"variant": "torchvision", "sizes": sizes, "modes": RUNNING}
    parity.check(reference, name, table, _stages(name), **settings)


def _check_timm(timm, parity, name, sizes):
    reference = timm.create_model(name, num_classes=10)
    table = name_maps.name_map(models.architecture(name), "timm")
    parity.check(reference, name, table, _stages(name), variant="timm", sizes=sizes)


@pytest.mark.full
def test_equals_torchvision(torchvision, parity):
    # One size and mode only, as the dense layers hold half a gigabyte.
    reference = torchvision.models.vgg11_bn(num_classes=10, init_weights=False)
    table = name_maps.name_map(models.architecture("vgg11_bn"), "torchvision")
    settings = {"variant": "torchvision", "sizes": (101,), "modes": RUNNING}
    parity.check(reference, "vgg11_bn", table, _stages("vgg11_bn"), **settings)


@pytest.mark.slow
# At 256 timm's dense layers slide, and torchvision's see averages.
@pytest.mark.parametrize("sizes", [(224, 96, 101), (256,)])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_torchvision(torchvision, parity, name, sizes):
    _check_torchvision(torchvision, parity, name, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(224, 96, 101), (256,)])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name, sizes):
    _check_timm(timm, parity, name, sizes)


def _check_keras(keras, parity, name, size, top):
    build = getattr(keras.applications, name.upper().replace("_", ""))
    settings = {"classes": 10, "classifier_activation": None} if top else {"pooling": "avg"}
    reference = build(include_top=top, weights=None, input_shape=(size, size, 3), **settings)
    if not top:
        logits = keras.layers.Dense(10, name="predictions")(reference.output)
        reference = keras.Model(reference.input, logits)
    depths = NETWORKS[name]["depths"]
    layers = [f"block{i}_conv{depth}" for i, depth in enumerate(depths, 1)]
    parity.check_keras(reference, name, layers, parity.images(size), bgr=True, top=top)


@pytest.mark.full
def test_equals_keras(keras, parity):
    _check_keras(keras, parity, "vgg16", 96, False)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "top"), [(224, True), (101, False)])
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_every_network_equals_keras(keras, parity, name, size, top):
    _check_keras(keras, parity, name, size, top)


def test_the_first_stage_in_bfloat16_differs_by_rounding_only():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    shape = {"depths": (2, 1), "widths": (8, 16)}
    exact, narrow = VGG(**shape), VGG(**shape, dtype=jnp.bfloat16)
    variables = jax.jit(exact.init)(jax.random.key(0), x)
    expected, found = (jax.jit(model.apply)(variables, x) for model in (exact, narrow))
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03 * scale)
    # Without the shorter form, for the maps before the pooling.
    other, stages = narrow.apply(variables, x, mutable=["intermediates"])
    np.testing.assert_allclose(other.astype(jnp.float32), expected, atol=0.03 * scale)
    assert stages["intermediates"]["stage_0"][0].shape == (2, 32, 32, 8)
