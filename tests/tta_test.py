import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import tta


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3)).astype(np.uint8)


def forward(images):
    """Logits that depend on where in the picture things are."""
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
