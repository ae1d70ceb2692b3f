import numpy as np
import pytest

from bloodjax.adaptation import stains
from bloodjax.data.lazy import AT_ONCE

RNG = np.random.default_rng(0)


def images(n, size=8):
    return np.random.default_rng(1).integers(20, 240, (n, size, size, 3)).astype(np.uint8)


def test_light_is_white_where_no_background_was_seen():
    found = stains.light(np.array([[200.0, 190, 180], [np.nan] * 3]))
    np.testing.assert_array_equal(found, [[200, 190, 180], [255, 255, 255]])


def test_density_is_the_logarithm_of_the_light_that_is_lost():
    background = np.array([[239.0, 199.0, 119.0]])
    half = np.full((1, 4, 4, 3), (119, 99, 59), np.uint8)
    np.testing.assert_allclose(stains.density(half, background), np.log(2))
    empty = np.full((1, 4, 4, 3), (239, 199, 119), np.uint8)
    np.testing.assert_allclose(stains.density(empty, background), 0)


def test_the_second_moment_is_that_of_the_middle():
    densities = RNG.normal(0, 1, (5, 8, 8, 3))
    middle = densities[:, 2:6, 2:6].reshape(-1, 3)
    expected = sum(np.outer(row, row) for row in middle) / len(middle)
    np.testing.assert_allclose(stains.second_moment(densities), expected, atol=2e-6)


@pytest.mark.parametrize("n", [1, AT_ONCE + 3])
def test_moments_of_many_images_are_those_of_all_together(n):
    background = np.full((n, 3), 245.0)
    together = stains.second_moment(stains.density(images(n), background))
    np.testing.assert_allclose(stains.of_images(images(n), background), together)


def test_images_count_by_their_weights():
    background = np.full((3, 3), 245.0)
    weighted = stains.of_images(images(3), background, np.array([2.0, 0.0, 1.0]))
    repeated = images(3)[[0, 0, 2]]
    np.testing.assert_allclose(weighted, stains.of_images(repeated, background))


def test_transport_gives_the_other_s_second_moment():
    moments = [a @ a.T + 0.01 * np.eye(3) for a in RNG.normal(0, 1, (2, 3, 3))]
    found = stains.transport(*moments)
    np.testing.assert_allclose(found, found.T)
    assert np.linalg.eigvalsh(found).min() > 0
    np.testing.assert_allclose(found @ moments[0] @ found, moments[1], rtol=1e-9)
    np.testing.assert_allclose(stains.transport(moments[0], moments[0]), np.eye(3), atol=1e-9)
