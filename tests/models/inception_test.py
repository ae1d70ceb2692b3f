import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.inception import NETWORKS
from bloodjax.pretrained import rules
from bloodjax.pretrained.merge import merge

FAMILY = "inception"
NAME = "inception_v3"

# What PyTorch's libraries call the last module of each stage.
_STAGES = ["Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"]
_LAYERS = ["activation_2", "activation_4", "mixed2", "mixed7", "mixed10"]


def _randomised(reference):
    """Draws every weight of a Keras model anew; returns them by "layer/variable"."""
    rng = np.random.default_rng(0)
    drawn = {}
    for weight in reference.weights:
        shape = tuple(weight.shape)
        if weight.name.endswith("kernel"):
            fan_in = np.prod(shape[:-1])
            value = rng.normal(size=shape, scale=(1.6 / fan_in) ** 0.5)
        elif weight.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.6, 1.4, shape)
        else:
            value = rng.normal(size=shape, scale=0.1)
        drawn[weight.path] = value.astype(np.float32)
        weight.assign(drawn[weight.path])
    return drawn


def _check_keras(keras, parity, reference, x):
    """Features or logits, and the outputs of the named layers, of our network and of Keras's."""
    drawn = _randomised(reference)
    model = models.build(NAME, 10, flavour="keras", hidden=(), batch_norm=False, dropout=(0.0, 0.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    table = rules.table(FAMILY, "keras", NAME)
    variables = merge(drawn, table, shapes, source=NAME)
    logits, stages, _ = parity.ours(model, variables, x)
    outputs = [reference.get_layer(layer).output for layer in _LAYERS] + [reference.output]
    whole = keras.Model(reference.input, outputs)
    # Keras's own arithmetic mixes types and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained, running = (
            [variable.value for variable in variables]
            for variables in (whole.trainable_variables, whole.non_trainable_variables)
        )
        theirs, _ = jax.jit(whole.stateless_call)(trained, running, x)
    errors = [parity.worst(a, b) for a, b in zip([*stages, logits], theirs, strict=True)]
    print(f"{NAME} keras: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


def test_parameters_as_published():
    assert list(NETWORKS) == [NAME]
    model = models.build(NAME, 1000, hidden=(), batch_norm=False)
    picture = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), picture)
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert millions == pytest.approx(23.83, abs=0.01)


def _errors(parity, found, expected):
    """The worst error of each stage and of the logits; both are (logits, stages)."""
    pairs = zip([*found[1], found[0]], [*expected[1], expected[0]], strict=True)
    return [parity.worst(a, b) for a, b in pairs]


def _check_torch(parity, reference, flavour, size):
    """With the running statistics."""
    reference = parity.randomised(reference)
    table = rules.table(FAMILY, flavour, NAME)
    model, variables = parity.from_torch(reference, NAME, table, flavour=flavour)
    x = parity.pictures(size)
    theirs = parity.torch_stages(reference, x, _STAGES)
    errors = _errors(parity, parity.ours(model, variables, x)[:2], theirs)
    print(f"{NAME} {flavour} {size}: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


def _timm(timm):
    return timm.create_model(NAME, num_classes=10, aux_logits=False)


def _torchvision(torchvision):
    return torchvision.models.inception_v3(
        num_classes=10, aux_logits=True, transform_input=False, init_weights=False
    )


def test_equals_timm(timm, parity):
    _check_torch(parity, _timm(timm), "timm", 96)


def test_equals_torchvision_whose_auxiliary_classifier_is_left_out(torchvision, parity):
    reference = _torchvision(torchvision)
    assert any(name.startswith("AuxLogits") for name in reference.state_dict())
    _check_torch(parity, reference, "torchvision", 101)


@pytest.mark.slow
@pytest.mark.parametrize("size", [299, 224, 101])
def test_equals_torch_at_every_size(timm, torchvision, parity, size):
    _check_torch(parity, _timm(timm), "timm", size)
    _check_torch(parity, _torchvision(torchvision), "torchvision", size)


def test_batch_statistics(timm, parity):
    # Ninety norms in a row magnify rounding: PyTorch's own float32 is further than 1e-4 from its
    # float64. Ours must be as near to that as PyTorch's is, give or take chance.
    reference = parity.randomised(_timm(timm))
    table = rules.table(FAMILY, "timm", NAME)
    model, variables = parity.from_torch(reference, NAME, table)
    x = parity.pictures(128)
    single = parity.torch_stages(reference, x, _STAGES, train=True)
    double = parity.torch_stages(reference.double(), x.astype(np.float64), _STAGES, train=True)
    errors = _errors(parity, parity.ours(model, variables, x, train_stats=True)[:2], double)
    print(f"{NAME} timm, the batch's statistics: errors {errors}")
    assert max(errors[:3]) <= 1e-4
    for error, rounding in zip(errors, _errors(parity, single, double), strict=True):
        assert error <= 3 * rounding


def _keras(keras, size):
    keras.utils.clear_session()  # automatic names start anew
    return keras.applications.InceptionV3(
        input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None
    )


@pytest.mark.slow  # Keras takes its time to make the network
@pytest.mark.parametrize("size", [299, 224, 96, 101])
def test_equals_keras(keras, parity, size):
    _check_keras(keras, parity, _keras(keras, size), parity.pictures(size))


def test_early_keras_counts_from_one():
    def target(source, name):
        table = rules.table(FAMILY, source, NAME)
        ours = {"params": {"backbone": {"stem_3b": {"kernel": np.ones((1, 1, 1, 1))}}}}
        return merge({name: np.zeros((1, 1, 1, 1))}, table, ours, source="a test")

    for source, name in (("keras", "conv2d_3/kernel"), ("keras_from_1", "conv2d_4/kernel")):
        assert not jax.tree.leaves(target(source, name)["params"])[0].any()
