import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.attribution import methods
from bloodjax.models.backbone import Backbone
from bloodjax.models.head import Head, Network

SIDE = 8


class _Linear(Backbone):
    """The image itself as the map of its only stage."""

    @nn.compact
    def __call__(self, x, train=False, update_stats=False):
        return self.end_stage(0, x).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def linear():
    """A linear network, its variables and its weights [channels, classes]."""
    model = Network(_Linear(), Head(4, hidden=(), batch_norm=False))
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    return model, {"params": {"head": {"logits": {"kernel": weights, "bias": bias}}}}, weights


@pytest.fixture(scope="module")
def inputs():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)), jnp.float32)


CLASSES = jnp.array([2, 0], jnp.int32)


def test_gradcam_of_a_linear_network(linear, inputs):
    model, variables, weights = linear
    found = methods.gradcam(model, variables, inputs, CLASSES)
    expected = (inputs * weights.T[CLASSES][:, None, None]).sum(-1) / SIDE**2
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-6)


def test_layercam_of_a_linear_network(linear, inputs):
    model, variables, weights = linear
    found = methods.layercam(model, variables, inputs, CLASSES)
    positive = np.maximum(weights.T[CLASSES], 0)[:, None, None]
    expected = np.maximum((inputs * positive).sum(-1), 0)
    np.testing.assert_allclose(found, expected / expected.max((1, 2), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", ["integrated_gradients", "integrated_cam"])
def test_path_integrals_of_a_linear_network(linear, inputs, name):
    model, variables, weights = linear
    found = np.asarray(methods.METHODS[name](model, variables, inputs, CLASSES))
    inputs = np.asarray(inputs)
    edges = np.concatenate([inputs[:, 0], inputs[:, -1], inputs[:, :, 0], inputs[:, :, -1]], 1)
    change = inputs - np.median(edges, axis=1)[:, None, None]
    expected = np.maximum((change * weights.T[CLASSES][:, None, None]).sum(-1) / SIDE**2, 0)
    if name == "integrated_cam":
        expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def _network(name, size, batch=2):
    model = models.build(name, 4, hidden=(), batch_norm=False)
    images = np.random.default_rng(2).normal(size=(batch, size, size, 3))
    return model, jnp.asarray(images, jnp.float32)


class _Smooth(Backbone):
    """Two stages that are smooth functions of the image, the second at half the resolution."""

    @nn.compact
    def __call__(self, x, train=False, update_stats=False):
        x = self.end_stage(0, jnp.sin(x) * x)
        x = self.end_stage(1, jnp.tanh(x[:, ::2, ::2] + x[:, 1::2, 1::2]))
        return x.mean(axis=(1, 2))


def test_contributions_of_the_input_add_up_to_the_change_of_the_logit(linear, inputs):
    """Completeness, proposition 1 of the paper."""
    _, variables, _ = linear
    model = Network(_Smooth(), Head(4, hidden=(), batch_norm=False))
    start = jnp.broadcast_to(methods.background(inputs), inputs.shape)
    before, after = (model.apply(variables, x)[np.arange(2), CLASSES] for x in (start, inputs))
    assert np.abs(after - before).min() > 1e-2
    found = methods.contributions(model, variables, inputs, CLASSES, [methods.INPUT], 64)
    total = np.asarray(found[methods.INPUT]).sum((1, 2))
    np.testing.assert_allclose(total, after - before, atol=1e-3)


def test_gradients_at_a_stage_are_those_of_the_rest_of_the_network(linear, inputs):
    _, variables, weights = linear
    model = Network(_Smooth(), Head(4, hidden=(), batch_norm=False))
    names = ["stage_0", "stage_1", methods.INPUT]
    maps, found = methods.gradients(model, variables, inputs, CLASSES, names)
    np.testing.assert_allclose(maps["stage_0"], np.sin(inputs) * inputs, atol=1e-6)
    own = np.broadcast_to(weights.T[CLASSES][:, None, None] / 16, (2, 4, 4, 3))
    np.testing.assert_allclose(found["stage_1"], own, rtol=1e-5)
    slope = own * (1 - np.asarray(maps["stage_1"]) ** 2)
    np.testing.assert_allclose(found["stage_0"][:, ::2, ::2], slope, rtol=1e-4)
    np.testing.assert_allclose(found["stage_0"][:, ::2, 1::2], 0)

    def logit(x):
        return model.apply(variables, x)[np.arange(2), CLASSES].sum()

    np.testing.assert_allclose(found[methods.INPUT], jax.grad(logit)(inputs), rtol=1e-5)


def test_a_product_of_maps_that_share_nothing_is_not_empty():
    inputs = jnp.zeros((3, 4, 4, 3), jnp.float32)
    first = np.zeros((3, 4, 4), np.float32)
    second = np.full((3, 4, 4), -1, np.float32)
    first[0, 0, 0] = first[0, 1, 1] = first[1, 0, 0] = 2
    second[0, 0, 0] = 3  # image 0: both at one position, image 1: the first only, image 2: none
    found = methods._product([jnp.asarray(first), jnp.asarray(second)], inputs)
    expected = np.zeros((3, 4, 4), np.float32)
    expected[0, 0, 0] = expected[1, 0, 0] = 1
    np.testing.assert_array_equal(found, expected)
    second[1, 3, 3] = 1
    found = methods._product([jnp.asarray(first), jnp.asarray(second)], inputs)
    expected[1, 0, 0] = expected[1, 3, 3] = 0.5
    np.testing.assert_array_equal(found, expected)


def test_the_last_stages_are_used():
    model, images = _network("mobilenetv1_025", 32, 1)
    variables = jax.eval_shape(lambda: models.init_variables(model, 32))
    names = methods.stages(model, variables, images)
    assert names == ["stage_1", "stage_2", "stage_3", "stage_4"]


# One network of each family -> side of its images.
SMALLEST = {
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "densenet121": 32,
    "efficientnet_lite0": 32,
    "inception_v3": 75,
    "mobilenetv1_025": 32,
    "resnet18": 32,
    "simple_cnn_050": 16,
    "vgg11": 32,
}
# A quarter to half a minute each.
LONG = (
    *("convnextv2_atto", "densenet121", "efficientnet_lite0", "inception_v3"),
    *("mobilenetv1_025", "resnet18", "vgg11"),
)


def test_every_family_is_among_the_smallest():
    families = {models.architecture(name).family for name in models.list_models()}
    assert families == {models.architecture(name).family for name in SMALLEST}


def _shape(method, name, size):
    model, images = _network(name, size)

    def explain(images):
        variables = models.init_variables(model, size)
        return methods.METHODS[method](model, variables, images, CLASSES)

    return jax.eval_shape(explain, images).shape


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_gives_a_map_of_the_size_of_the_image(method):
    assert _shape(method, "simple_cnn_050", 16) == (2, 16, 16)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=getattr(pytest.mark, "slow" if name in LONG else "full"))
        for name, size in SMALLEST.items()
    ],
)
def test_every_family_has_maps(name, size):
    model, images = _network(name, size)
    variables = models.init_variables(model, size)
    images, classes = jnp.repeat(images, 4, axis=0), jnp.tile(jnp.arange(4), 2)
    for method in ("integrated_cam", "gradcam"):
        explain = jax.jit(methods.METHODS[method], static_argnums=0)
        found = np.asarray(explain(model, variables, images, classes))
        assert found.shape == (8, size, size)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() > 0
        assert not np.array_equal(found, np.roll(found, 1, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.list_models()) - set(SMALLEST)))
def test_every_network_has_maps(name):
    size = max(32, models.architecture(name).min_image_size)
    assert _shape("layercam", name, size) == (2, size, size)
