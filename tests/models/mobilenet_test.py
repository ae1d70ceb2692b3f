import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.mobilenet import NETWORKS
from bloodjax.pretrained import rules
from bloodjax.pretrained.merge import merge

# Millions of parameters with 1000 classes, as the paper and Keras publish them.
MILLIONS = {"100": 4.23, "075": 2.59, "050": 1.33, "025": 0.47}
FAMILY = "mobilenet"

# Keras's last layer of each resolution.
_LAYERS = [f"conv_pw_{i}_relu" for i in (1, 3, 5, 11, 13)]


def _randomised(reference):
    """Draws every weight of a Keras model anew; returns them by "layer/variable"."""
    rng = np.random.default_rng(0)
    drawn = {}
    for weight in reference.weights:
        shape = tuple(weight.shape)
        if weight.name.endswith("kernel"):
            depthwise = weight.path.startswith("conv_dw")
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            value = rng.normal(size=shape, scale=(1.6 / fan_in) ** 0.5)
        elif weight.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.6, 1.4, shape)
        else:
            value = rng.normal(size=shape, scale=0.1)
        drawn[weight.path] = value.astype(np.float32)
        weight.assign(drawn[weight.path])
    return drawn


def _check_keras(keras, parity, reference, name, layers, x):
    """Features or logits, and the outputs of the named layers, of our network and of Keras's."""
    drawn = _randomised(reference)
    model = models.build(name, 10, flavour="keras", hidden=(), batch_norm=False, dropout=(0.0, 0.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    table = rules.table(FAMILY, "keras", name)
    variables = merge(drawn, table, shapes, source=name)
    logits, stages, _ = parity.ours(model, variables, x)
    outputs = [reference.get_layer(layer).output for layer in layers] + [reference.output]
    whole = keras.Model(reference.input, outputs)
    # Keras's own arithmetic mixes types and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained, running = (
            [variable.value for variable in variables]
            for variables in (whole.trainable_variables, whole.non_trainable_variables)
        )
        theirs, _ = jax.jit(whole.stateless_call)(trained, running, x)
    errors = [parity.worst(a, b) for a, b in zip([*stages, logits], theirs, strict=True)]
    print(f"{name} keras: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, hidden=(), batch_norm=False)
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), picture)
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert millions == pytest.approx(MILLIONS[name.rpartition("_")[2]], abs=0.01)


def _keras(keras, name, size):
    return keras.applications.MobileNet(
        input_shape=(size, size, 3),
        alpha=NETWORKS[name]["multiplier"],
        weights=None,
        classes=10,
        classifier_activation=None,
    )


# Even and odd maps are padded differently.
@pytest.mark.parametrize("size", [96, 101])
def test_equals_keras(keras, parity, size):
    name = "mobilenet_v1_025"
    _check_keras(keras, parity, _keras(keras, name, size), name, _LAYERS, parity.pictures(size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 96, 101])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_keras(keras, parity, name, size):
    _check_keras(keras, parity, _keras(keras, name, size), name, _LAYERS, parity.pictures(size))


def _timm(timm, name):
    from timm.models.efficientnet import _gen_mobilenet_v1

    # timm names only the full width; its builder knows the others.
    return _gen_mobilenet_v1("mobilenetv1_100", NETWORKS[name]["multiplier"], num_classes=10)


def _check_timm(timm, parity, name, **settings):
    table = rules.table(FAMILY, "timm", name)
    parity.check(_timm(timm, name), name, table, [f"blocks.{i}" for i in range(5)], **settings)


def test_equals_timm(timm, parity):
    _check_timm(timm, parity, "mobilenet_v1_025", sizes=(96, 101))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    _check_timm(timm, parity, name)


def test_keras_2_names_the_depthwise_kernels_otherwise():
    new = rules.table(FAMILY, "keras", "mobilenet_v1_100")
    drawn = {"conv_dw_4/depthwise_kernel": np.zeros((3, 3, 8, 1), np.float32)}
    ours = {
        "params": {"backbone": {"stage_2_block_0": {"depthwise": {"kernel": np.ones((3, 3, 8))}}}}
    }
    merged = merge(drawn, new, ours, source="a test")
    assert not jax.tree.leaves(merged["params"])[0].any()
