import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import tta, views


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3)).astype(np.uint8)


def forward(images):
    """Logits that depend on where in the image things are."""
    weights = np.random.default_rng(1).normal(size=(75, 6)).astype(np.float32)
    return images.reshape(len(images), -1).astype(jnp.float32) / 255 @ weights


def softmax(images):
    logits = np.asarray(forward(jnp.asarray(images)), np.float64)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["none", "flip", "d4"])
def test_the_mean_of_the_probabilities_over_the_views(pictures, name):
    turns = {"none": (0,), "flip": (0, 2), "d4": (0, 1, 2, 3)}[name]
    mirrors = (pictures,) if name == "none" else (pictures, pictures[:, :, ::-1])
    views = [np.rot90(mirror, k, axes=(1, 2)) for mirror in mirrors for k in turns]
    expected = np.mean([softmax(view) for view in views], axis=0)
    found = tta.probabilities(forward, jnp.asarray(pictures), name)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_d4_probabilities_do_not_depend_on_how_the_picture_lies(pictures):
    turned = np.rot90(pictures[:, ::-1], axes=(1, 2)).copy()
    probabilities = jax.jit(lambda x: tta.probabilities(forward, x, "d4"))
    np.testing.assert_allclose(probabilities(turned), probabilities(pictures), atol=1e-6)


def views_softmax(pictures, name):
    seen = [np.asarray(view(jnp.asarray(pictures))) for view in views.named(name).values()]
    return np.stack([softmax(view) for view in seen])


@pytest.mark.parametrize("name", ["crops", "flip+crops"])
def test_many_views_one_after_another_are_the_same_mean(pictures, name):
    found = tta.probabilities(forward, jnp.asarray(pictures), name)
    np.testing.assert_allclose(found, views_softmax(pictures, name).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("average", tta.AVERAGES)
@pytest.mark.parametrize("weights", [(), (("flip_up_down", 1.0),)])
def test_the_picture_alone_stands_beside_its_views(pictures, average, weights):
    plan = tta.TTAConfig("flip", average, weights)
    found = tta.probabilities(
        forward, jnp.asarray(pictures), dataclasses.replace(plan, beside=True)
    )
    views_alone = tta.probabilities(forward, jnp.asarray(pictures), plan)
    np.testing.assert_allclose(found[:, 0], views_alone, atol=1e-7)
    np.testing.assert_allclose(found[:, 1], softmax(pictures), atol=1e-6)


def test_more_than_eight_views_take_the_memory_of_one_batch(pictures):
    def program(name):
        return jax.jit(lambda x: tta.probabilities(forward, x, name)).lower(pictures).as_text()

    at_once, one_by_one = program("d4"), program("d4+robust")
    assert "tensor<8x4x75xf32>" in at_once
    assert "while" not in at_once
    assert "tensor<4x75xf32>" in one_by_one
    assert "tensor<40x4x75xf32>" not in one_by_one
    assert "while" in one_by_one


def test_logits_are_averaged_before_the_softmax(pictures):
    each = views_softmax(pictures, "d4")
    expected = np.exp(np.log(each).mean(axis=0))
    expected /= expected.sum(axis=-1, keepdims=True)
    found = tta.probabilities(forward, jnp.asarray(pictures), tta.TTAConfig("d4", "logits"))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - each.mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize("average", tta.AVERAGES)
def test_views_without_a_weight_are_not_computed(pictures, average):
    each = views_softmax(pictures, "d4")
    names = list(views.named("d4"))
    plan = tta.TTAConfig("d4", average, ((names[5], 0.75), (names[1], 0.25)))
    if average == "logits":
        expected = np.exp(0.75 * np.log(each[5]) + 0.25 * np.log(each[1]))
        expected /= expected.sum(axis=-1, keepdims=True)
    else:
        expected = 0.75 * each[5] + 0.25 * each[1]
    found = tta.probabilities(forward, jnp.asarray(pictures), plan)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    operations = jax.jit(lambda x: tta.probabilities(forward, x, plan)).lower(pictures).as_text()
    assert "tensor<2x4x75xf32>" in operations
    assert "tensor<8x4x75xf32>" not in operations


def test_each_view_is_in_the_order_of_the_names(pictures):
    found = tta.each_view(forward, jnp.asarray(pictures), "d4+crops")
    assert found.shape == (4, 48, 6)
    expected = views_softmax(pictures, "d4+crops").swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
