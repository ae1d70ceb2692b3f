import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment.geometry import VIEWS, random_index, random_view, views


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)


def as_set(images):
    return {np.asarray(image).tobytes() for image in images}


def test_d4_is_every_rotation_of_the_image_and_of_its_mirror_image(images):
    found = views(jnp.asarray(images), "d4")
    assert found.shape == (8, 5, 6, 6, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], images)
    for i, image in enumerate(images):
        expected = [np.rot90(p, k) for p in (image, np.fliplr(image)) for k in range(4)]
        assert as_set(found[:, i]) == as_set(expected)
        assert len(as_set(found[:, i])) == 8


def test_flip_is_both_flips_and_none_the_image_alone(images):
    found = views(jnp.asarray(images), "flip")
    expected = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]
    np.testing.assert_array_equal(found, np.stack(expected))
    np.testing.assert_array_equal(views(jnp.asarray(images), "none"), images[None])


@pytest.mark.parametrize("name", list(VIEWS))
def test_random_views_are_equally_likely(images, name):
    n = 4000
    batch = jnp.asarray(np.repeat(images[:1], n, axis=0))
    drawn = random_view(jax.random.split(jax.random.key(1), n), batch, name)
    choices = np.asarray(views(jnp.asarray(images[:1]), name))[:, 0]
    counts = np.array([np.all(drawn == view[None], axis=(1, 2, 3)).sum() for view in choices])
    assert counts.sum() == n
    expected = n / len(choices)
    # Far beyond the 99.9 % quantile of chi-square with 7 degrees of freedom, 24.3.
    assert ((counts - expected) ** 2 / expected).sum() < 30


def test_a_random_view_is_that_of_its_key_s_index(images):
    keys = jax.random.split(jax.random.key(2), len(images))
    index = random_index(keys, "d4")
    every = views(jnp.asarray(images), "d4")
    expected = every[index, jnp.arange(len(images))]
    np.testing.assert_array_equal(random_view(keys, jnp.asarray(images), "d4"), expected)


def test_a_random_view_depends_on_its_own_key_and_image_alone(images):
    keys = jax.random.split(jax.random.key(2), 5)
    batch = jnp.asarray(images)
    views_of_all = random_view(keys, batch, "d4")
    np.testing.assert_array_equal(random_view(keys, batch, "d4"), views_of_all)
    np.testing.assert_array_equal(random_view(keys[3:], batch[3:], "d4"), views_of_all[3:])
    others = [random_view(jax.random.split(jax.random.key(k), 5), batch, "d4") for k in range(3, 6)]
    assert any(np.any(other != views_of_all) for other in others)
