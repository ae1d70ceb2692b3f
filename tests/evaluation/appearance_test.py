import jax
import numpy as np
import pytest
from scipy import ndimage

from bloodjax.evaluation.appearance import Appearance, zoom_weights

SIZE = 32


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


def test_the_default_changes_nothing(images):
    np.testing.assert_array_equal(Appearance().apply(images), images)


def test_the_background_gets_its_target(images):
    background, target = (200.0, 180.0, 160.0), (250.0, 225.0, 120.0)
    change = Appearance(background, target)
    site = np.broadcast_to(np.uint8(background), (1, 4, 4, 3))
    np.testing.assert_array_equal(change.apply(site)[0, 0, 0], target)
    expected = images * (np.array(target) / background)
    np.testing.assert_allclose(change.apply(images), np.minimum(expected, 255), atol=0.51)


@pytest.mark.parametrize("zoom", [0.8, 1.5])
def test_zoom_is_linear_interpolation_about_the_middle(zoom):
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    spot = np.exp(-((rows - 18) ** 2 + (columns - 14) ** 2) / (2 * 3.0**2))
    image = np.repeat((200 * spot)[..., None], 3, -1).astype(np.uint8)
    found = np.asarray(Appearance(zoom=zoom).apply(image[None]))[0, ..., 0].astype(float)
    middle = SIZE / 2
    assert abs((found * rows).sum() / found.sum() - (middle + zoom * (18 - middle))) < 0.15
    assert abs((found * columns).sum() / found.sum() - (middle + zoom * (14 - middle))) < 0.15
    if zoom > 1:
        offset = middle - 0.5 - (middle - 0.5) / zoom
        expected = ndimage.affine_transform(
            image[..., 0].astype(float), [1 / zoom] * 2, offset, order=1, mode="reflect"
        )
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_weights_of_a_zoom_sum_to_one_and_reflect():
    weights = zoom_weights(8, 0.25)
    np.testing.assert_array_equal(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(4096 * weights, np.rint(4096 * weights))
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    np.testing.assert_array_equal(zoom_weights(8, 1.0), np.eye(8, dtype=np.float32))


def test_it_is_part_of_a_compiled_program(images):
    change = Appearance((200.0, 190.0, 180.0), (250.0, 225.0, 200.0), 1.2)
    np.testing.assert_array_equal(jax.jit(change.apply)(images), change.apply(images))
    assert Appearance.from_dict(change.to_dict()) == change


@pytest.mark.parametrize(
    "changes",
    [{"zoom": 0.0}, {"zoom": 9.0}, {"background": (0.0, 1.0, 1.0)}],
)
def test_impossible_values_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected a factor|not in 1\.\.255"):
        Appearance(**changes)
