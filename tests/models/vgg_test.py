import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.vgg import NETWORKS, adaptive_avg_pool
from bloodjax.pretrained import rules
from bloodjax.pretrained.merge import merge

# Millions of parameters with 1000 classes, as torchvision publishes them.
MILLIONS = {"vgg_11": 132.86, "vgg_13": 133.05, "vgg_16": 138.36, "vgg_19": 143.67}
MILLIONS |= {"vgg_11_bn": 132.87, "vgg_13_bn": 133.05, "vgg_16_bn": 138.37, "vgg_19_bn": 143.68}
FAMILY = "vgg"


def _randomised(reference):
    """Draws every weight of a Keras model anew; returns them by "layer/variable"."""
    rng = np.random.default_rng(0)
    drawn = {}
    for weight in reference.weights:
        shape = tuple(weight.shape)
        if weight.name.endswith("kernel"):
            fan_in = np.prod(shape[:-1])
            value = rng.normal(size=shape, scale=(1.6 / fan_in) ** 0.5)
        else:
            value = rng.normal(size=shape, scale=0.1)
        drawn[weight.path] = value.astype(np.float32)
        weight.assign(drawn[weight.path])
    return drawn


def _check_keras(keras, parity, reference, name, layers, x, top):
    """Features or logits, and the outputs of the named layers, of our network and of Keras's."""
    drawn = _randomised(reference)
    model = models.build(
        name, 10, flavour="keras", top=top, hidden=(), batch_norm=False, dropout=(0.0, 0.0)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    table = rules.table(FAMILY, "keras", name)
    variables = merge(drawn, table, shapes, source=name)
    logits, stages, _ = parity.ours(model, variables, x)
    outputs = [reference.get_layer(layer).output for layer in layers] + [reference.output]
    whole = keras.Model(reference.input, outputs)
    # Keras's own arithmetic mixes types and ranks; its VGG takes BGR pictures.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained, running = (
            [variable.value for variable in variables]
            for variables in (whole.trainable_variables, whole.non_trainable_variables)
        )
        theirs, _ = jax.jit(whole.stateless_call)(trained, running, x[..., ::-1])
    errors = [parity.worst(a, b) for a, b in zip([*stages, logits], theirs, strict=True)]
    print(f"{name} keras: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


def _stages(name):
    """The modules before the max pools, in both of PyTorch's libraries."""
    ends, index = [], -1
    for depth in NETWORKS[name]["depths"]:
        index += depth * (3 if NETWORKS[name]["norm"] else 2)
        ends.append(f"features.{index}")
        index += 1
    return ends


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, top=True, hidden=(), batch_norm=False)
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), picture)
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
    model = models.build("vgg_11", 10, hidden=(), batch_norm=False)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert "top_0" not in shapes["backbone"]
    assert shapes["head"]["logits"]["kernel"].shape == (512, 10)


def _check_torchvision(torchvision, parity, name, sizes):
    build = getattr(torchvision.models, name.replace("vgg_", "vgg"))
    reference = build(num_classes=10, dropout=0.0, init_weights=False)
    table = rules.table(FAMILY, "torchvision", name)
    parity.check(reference, name, table, _stages(name), flavour="torchvision", sizes=sizes)


def _check_timm(timm, parity, name, sizes):
    reference = timm.create_model(name.replace("vgg_", "vgg"), num_classes=10)
    table = rules.table(FAMILY, "timm", name)
    parity.check(reference, name, table, _stages(name), flavour="timm", sizes=sizes)


def test_equals_torchvision(torchvision, parity):
    # One pass only, as the dense layers hold half a gigabyte.
    name, size = "vgg_11_bn", 101
    reference = parity.randomised(torchvision.models.vgg11_bn(num_classes=10, init_weights=False))
    table = rules.table(FAMILY, "torchvision", name)
    model, variables = parity.from_torch(reference, name, table, flavour="torchvision")
    x = parity.pictures(size, batch=1)
    logits, stages = parity.torch_stages(reference, x, _stages(name))
    our_logits, our_stages, _ = parity.ours(model, variables, x)
    pairs = zip([*our_stages, our_logits], [*stages, logits], strict=True)
    assert max(parity.worst(a, b) for a, b in pairs) <= 1e-4


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


def _compare_with_keras(keras, parity, name, size, top):
    build = getattr(keras.applications, name.upper().replace("_", ""))
    settings = {"classes": 10, "classifier_activation": None} if top else {"pooling": "avg"}
    reference = build(include_top=top, weights=None, input_shape=(size, size, 3), **settings)
    if not top:
        logits = keras.layers.Dense(10, name="predictions")(reference.output)
        reference = keras.Model(reference.input, logits)
    depths = NETWORKS[name]["depths"]
    layers = [f"block{i}_conv{depth}" for i, depth in enumerate(depths, 1)]
    _check_keras(keras, parity, reference, name, layers, parity.pictures(size), top)


def test_equals_keras(keras, parity):
    _compare_with_keras(keras, parity, "vgg_16", 96, False)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "top"), [(224, True), (101, False)])
@pytest.mark.parametrize("name", ["vgg_16", "vgg_19"])
def test_every_network_equals_keras(keras, parity, name, size, top):
    _compare_with_keras(keras, parity, name, size, top)
