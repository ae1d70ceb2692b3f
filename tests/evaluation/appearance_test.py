import jax
import numpy as np
import pytest

from bloodjax.augment.zoom import zoom
from bloodjax.evaluation.appearance import Appearance

SIZE = 32
MATRIX = ((0.6, 0.2, 0.0), (0.2, 0.6, 0.1), (0.0, 0.1, 0.4))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


def test_the_default_changes_nothing(images):
    np.testing.assert_array_equal(Appearance().apply(images), images)


def test_it_knows_whether_it_changes_anything():
    grey = (200.0, 200.0, 200.0)
    assert Appearance(grey, grey).changes_nothing
    for change in ({"zoom": 1.1}, {"background": grey}, {"density": MATRIX}):
        assert not Appearance(**change).changes_nothing


def test_the_background_gets_its_target(images):
    background, target = (200.0, 180.0, 160.0), (250.0, 225.0, 120.0)
    change = Appearance(background, target)
    site = np.broadcast_to(np.uint8(background), (1, 4, 4, 3))
    np.testing.assert_array_equal(change.apply(site)[0, 0, 0], target)
    expected = images * (np.array(target) / background)
    np.testing.assert_allclose(change.apply(images), np.minimum(expected, 255), atol=0.51)


def test_zoom_comes_after_the_light(images):
    change = Appearance((200.0, 190.0, 180.0), (250.0, 225.0, 200.0), 1.2)
    lit = Appearance(change.background, change.target).apply(images)
    np.testing.assert_array_equal(change.apply(images), zoom(lit, 1.2))


def test_densities_are_multiplied_relative_to_the_target(images):
    background, target = (200.0, 190.0, 180.0), (250.0, 225.0, 200.0)
    change = Appearance(background, target, density=MATRIX)
    lit = np.float64(Appearance(background, target).apply(images))
    light = np.array(target) + 1
    expected = light * np.exp(-np.log(light / (lit + 1)) @ np.array(MATRIX)) - 1
    found = change.apply(images)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.501)
    # The background has no density.
    empty = np.broadcast_to(np.uint8(background), (1, 4, 4, 3))
    np.testing.assert_array_equal(change.apply(empty)[0, 0, 0], target)


def test_half_the_density_is_half_the_stain():
    """By the law of Beer and Lambert: twice the dye, the light squared."""
    light, passed = 240.0, np.array([[0.9, 0.6, 0.8], [0.5, 0.3, 0.7]])
    dense = np.rint((light + 1) * passed**2 - 1).astype(np.uint8).reshape(2, 1, 1, 3)
    half = tuple(tuple(row) for row in (np.eye(3) / 2).tolist())
    found = Appearance((light,) * 3, (light,) * 3, density=half).apply(dense)
    np.testing.assert_allclose(found[:, 0, 0], (light + 1) * passed - 1, atol=1.1)


def test_a_file_without_densities_is_read():
    change = Appearance(zoom=1.2)
    content = change.to_dict()
    del content["density"]
    assert Appearance.from_dict(content) == change


def test_it_is_part_of_a_compiled_program(images):
    change = Appearance((200.0, 190.0, 180.0), (250.0, 225.0, 200.0), 1.2, MATRIX)
    np.testing.assert_array_equal(jax.jit(change.apply)(images), change.apply(images))
    assert Appearance.from_dict(change.to_dict()) == change


@pytest.mark.parametrize(
    "changes",
    [
        *({"zoom": 0.0}, {"zoom": 9.0}, {"background": (0.0, 1.0, 1.0)}),
        *({"density": MATRIX[:2]}, {"density": (*MATRIX[:2], (0.0, float("nan"), 1.0))}),
    ],
)
def test_impossible_values_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected a factor|not in 1\.\.255|3x3 numbers"):
        Appearance(**changes)
