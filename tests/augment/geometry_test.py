import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment.geometry import VIEWS, random_index, random_view, views


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)


def as_set(images):
    return {np.asarray(image).tobytes() for image in images}


def test_d4_is_every_rotation_of_the_picture_and_of_its_mirror_image(pictures):
    found = views(jnp.asarray(pictures), "d4")
    assert found.shape == (8, 5, 6, 6, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], pictures)
    for i, picture in enumerate(pictures):
        expected = [np.rot90(p, k) for p in (picture, np.fliplr(picture)) for k in range(4)]
        assert as_set(found[:, i]) == as_set(expected)
        assert len(as_set(found[:, i])) == 8


def test_flip_is_both_flips_and_none_the_picture_alone(pictures):
    found = views(jnp.asarray(pictures), "flip")
    expected = [pictures, pictures[:, :, ::-1], pictures[:, ::-1], pictures[:, ::-1, ::-1]]
    np.testing.assert_array_equal(found, np.stack(expected))
    np.testing.assert_array_equal(views(jnp.asarray(pictures), "none"), pictures[None])


@pytest.mark.parametrize("name", list(VIEWS))
def test_random_views_are_equally_likely(pictures, name):
    n = 4000
    batch = jnp.asarray(np.repeat(pictures[:1], n, axis=0))
    drawn = random_view(jax.random.split(jax.random.key(1), n), batch, name)
    choices = np.asarray(views(jnp.asarray(pictures[:1]), name))[:, 0]
    counts = np.array([np.all(drawn == view[None], axis=(1, 2, 3)).sum() for view in choices])
    assert counts.sum() == n
    expected = n / len(choices)
    # Far beyond the 99.9 % quantile of chi-square with 7 degrees of freedom, 24.3.
    assert ((counts - expected) ** 2 / expected).sum() < 30


def test_a_random_view_is_that_of_its_key_s_index(pictures):
    keys = jax.random.split(jax.random.key(2), len(pictures))
    index = random_index(keys, "d4")
    every = views(jnp.asarray(pictures), "d4")
    expected = every[index, jnp.arange(len(pictures))]
    np.testing.assert_array_equal(random_view(keys, jnp.asarray(pictures), "d4"), expected)


def test_a_random_view_depends_on_its_own_key_and_picture_alone(pictures):
    keys = jax.random.split(jax.random.key(2), 5)
    batch = jnp.asarray(pictures)
    whole = random_view(keys, batch, "d4")
    np.testing.assert_array_equal(random_view(keys, batch, "d4"), whole)
    np.testing.assert_array_equal(random_view(keys[3:], batch[3:], "d4"), whole[3:])
    others = [random_view(jax.random.split(jax.random.key(k), 5), batch, "d4") for k in range(3, 6)]
    assert any(np.any(other != whole) for other in others)
