"""The forms for planes equal those for images. The other tests hold both to Pillow and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import affine, colour, filters, planes, stain

SIZES = [(37, 41), (48, 32), (1, 5), (96, 96)]


@pytest.fixture(params=SIZES, ids=str)
def images(request):
    return np.random.default_rng(0).integers(0, 256, (5, *request.param, 3)).astype(np.uint8)


def by_planes(function, images, *params):
    found = jax.jit(function)(planes.from_images(jnp.asarray(images)), *params)
    return np.asarray(planes.to_images(found))


def test_images_come_back(images):
    found = by_planes(lambda x: x, images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images)


def test_tables_are_looked_up_exactly(images):
    tables = np.random.default_rng(1).integers(0, 256, (5, 256, 3)).astype(np.float32)
    expected = jax.vmap(colour.look_up)(images, tables)
    np.testing.assert_array_equal(by_planes(planes.look_up, images, tables), expected)


def test_histograms_are_counted_exactly(images):
    found = jax.jit(planes.histogram)(planes.from_images(jnp.asarray(images)))
    np.testing.assert_array_equal(found, jax.vmap(colour.histogram)(images))


def test_counts_and_tables_are_the_same_without_gathers():
    rng = np.random.default_rng(2)
    first, second = jnp.asarray(rng.integers(0, 256, (2, 256, 3)), jnp.float32)
    counted = jnp.asarray(rng.integers(0, 60_000, (256, 3)), jnp.float32)
    np.testing.assert_array_equal(
        colour._counts_by_products(first, counted), colour._counts_by_adding(first, counted)
    )
    np.testing.assert_array_equal(
        colour._compose_by_products(first, second),
        colour._compose_by_look_up(first, second),
    )


def test_matrices_mix_channels(images):
    matrices = np.random.default_rng(1).normal(0, 1, (5, 3, 3)).astype(np.float32)
    expected = jax.vmap(colour.mix_channels)(images.astype(np.float32), matrices)
    np.testing.assert_allclose(
        by_planes(planes.mix_channels, images, matrices), expected, atol=1e-3
    )


@pytest.mark.parametrize("fill", affine.FILLS)
def test_images_are_resampled_within_rounding(images, fill):
    rng = np.random.default_rng(3)
    maps = np.concatenate([rng.normal(0, 1.5, (5, 2, 2)), rng.normal(0, 60, (5, 2, 1))], 2)
    maps = np.concatenate([maps, np.eye(2, 3)[None]])[1:].astype(np.float32)
    found = by_planes(lambda x, maps: planes.resample(x, maps, fill), images, maps)
    expected = jax.vmap(lambda x, a: affine.resample(x, a, fill))(images, maps)
    # Coordinates are float32: their error grows with their distance from the image.
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_array_equal(found[-1], images[-1])


RANDOM = np.random.default_rng(4)
FILTERS = {
    "defocus": (filters.defocus, planes.defocus, ([0.0, 0.7, 1.5, 3.0, 9.0],)),
    "blur": (filters.gaussian_blur, planes.gaussian_blur, ([0.0, 0.3, 1.0, 2.0, 5.0],)),
    "motion_blur": (
        filters.motion_blur,
        lambda x, *params: planes.motion_blur(x, params),
        ([1.0, 1.5, 5.0, 9.0, 30.0], [0.0, 17.0, 45.0, 115.0, -46.0]),
    ),
    "sharpness": (filters.sharpness, planes.sharpness, ([0.0, 0.4, 1.0, 1.9, 3.0],)),
    "density": (
        stain.change_density,
        lambda x, *params: planes.change_density(x, params),
        (RANDOM.normal(0, 0.3, (5, 3, 3)), RANDOM.normal(0, 0.2, (5, 3))),
    ),
    "random_conv": (
        filters.random_conv,
        lambda x, *params: planes.random_conv(x, params),
        (RANDOM.normal(0, 0.3, (5, 3, 3, 3, 3)), [0.0, 0.2, 0.5, 0.8, 1.0]),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_equal_within_rounding(images, name):
    if min(images.shape[1:3]) < 3:
        pytest.skip("Sharpness needs 3 pixels, and blurs mirror an image once.")
    on_image, on_planes, params = FILTERS[name]
    params = [np.array(values, np.float32) for values in params]
    expected = jax.jit(jax.vmap(on_image))(images.astype(np.float32), *params)
    np.testing.assert_allclose(by_planes(on_planes, images, *params), expected, atol=1e-3)
