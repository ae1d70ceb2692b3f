import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import tta, views
from bloodjax.metrics.calibration import Calibration


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3)).astype(np.uint8)


def forward(images):
    """Logits that depend on positions in the image."""
    weights = np.random.default_rng(1).normal(size=(75, 6)).astype(np.float32)
    return images.reshape(len(images), -1).astype(jnp.float32) / 255 @ weights


def softmax(images):
    logits = np.asarray(forward(jnp.asarray(images)), np.float64)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["none", "flip", "d4"])
def test_the_mean_of_the_probabilities_over_the_views(images, name):
    turns = {"none": (0,), "flip": (0, 2), "d4": (0, 1, 2, 3)}[name]
    mirrors = (images,) if name == "none" else (images, images[:, :, ::-1])
    views = [np.rot90(mirror, k, axes=(1, 2)) for mirror in mirrors for k in turns]
    expected = np.mean([softmax(view) for view in views], axis=0)
    found = tta.probabilities(forward, jnp.asarray(images), name)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_d4_probabilities_do_not_depend_on_how_the_image_lies(images):
    turned = np.rot90(images[:, ::-1], axes=(1, 2)).copy()
    probabilities = jax.jit(lambda x: tta.probabilities(forward, x, "d4"))
    np.testing.assert_allclose(probabilities(turned), probabilities(images), atol=1e-6)


def views_softmax(images, name):
    seen = [np.asarray(view(jnp.asarray(images))) for view in views.named(name).values()]
    return np.stack([softmax(view) for view in seen])


@pytest.mark.parametrize("name", ["crops", "flip+crops"])
def test_many_views_one_after_another_are_the_same_mean(images, name):
    found = tta.probabilities(forward, jnp.asarray(images), name)
    np.testing.assert_allclose(found, views_softmax(images, name).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("average", tta.AVERAGES)
@pytest.mark.parametrize("weights", [(), (("flip_up_down", 1.0),)])
def test_the_prediction_for_the_image_alone_is_returned_too(images, average, weights):
    config = tta.TTAConfig("flip", average, weights)
    found = tta.probabilities(
        forward, jnp.asarray(images), dataclasses.replace(config, with_plain=True)
    )
    expected = tta.probabilities(forward, jnp.asarray(images), config)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-7)
    np.testing.assert_allclose(found[:, 1], softmax(images), atol=1e-6)


def test_more_than_eight_views_take_the_memory_of_eight_images(images):
    def program(name):
        return jax.jit(lambda x: tta.probabilities(forward, x, name)).lower(images).as_text()

    at_once, one_by_one = program("d4"), program("d4+robust")
    assert "tensor<32x75xf32>" in at_once
    assert "while" not in at_once
    assert "tensor<8x75xf32>" in one_by_one
    assert "tensor<160x75xf32>" not in one_by_one
    assert "while" in one_by_one


def test_many_views_are_made_one_after_another(images):
    """All of them, and the float32 of resampled crops, took gigabytes for large images."""

    def brightness(x):
        return x.astype(jnp.float32).mean((1, 2))

    def temporaries(name):
        one = jnp.zeros((8, 64, 64, 3), jnp.uint8)
        lowered = jax.jit(lambda x: tta.probabilities(brightness, x, name)).lower(one)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("d4+crops") < 2 * temporaries("d4")


def test_logits_are_averaged_before_the_softmax(images):
    each = views_softmax(images, "d4")
    expected = np.exp(np.log(each).mean(axis=0))
    expected /= expected.sum(axis=-1, keepdims=True)
    found = tta.probabilities(forward, jnp.asarray(images), tta.TTAConfig("d4", "logits"))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - each.mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize("average", tta.AVERAGES)
def test_views_without_a_weight_are_not_computed(images, average):
    each = views_softmax(images, "d4")
    names = list(views.named("d4"))
    config = tta.TTAConfig("d4", average, ((names[5], 0.75), (names[1], 0.25)))
    if average == "logits":
        expected = np.exp(0.75 * np.log(each[5]) + 0.25 * np.log(each[1]))
        expected /= expected.sum(axis=-1, keepdims=True)
    else:
        expected = 0.75 * each[5] + 0.25 * each[1]
    found = tta.probabilities(forward, jnp.asarray(images), config)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    operations = jax.jit(lambda x: tta.probabilities(forward, x, config)).lower(images).as_text()
    # Two views of four images are one batch, of all eight views it would have 32 rows.
    assert "tensor<8x75xf32>" in operations
    assert "tensor<32x75xf32>" not in operations


def test_each_view_is_in_the_order_of_the_names(images):
    found = tta.each_view(forward, jnp.asarray(images), "d4+crops")
    assert found.shape == (4, 48, 6)
    expected = views_softmax(images, "d4+crops").swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"scale": (1.0, 0.5, 2.0), "bias": (0.1, 0.0, -0.3)}])
def test_a_calibration_on_the_device_is_that_of_numpy(more):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 5).astype(np.float32)
    chosen = Calibration("vector" if more else "temperature", 0.7, **more)
    found = tta.calibrate(jnp.log(probabilities), chosen)
    np.testing.assert_allclose(found, chosen.apply(probabilities), atol=1e-6)
