import jax
import numpy as np
import pytest

from bloodjax.augment.zoom import zoom
from bloodjax.evaluation.appearance import Appearance

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


def test_zoom_comes_after_the_light(images):
    change = Appearance((200.0, 190.0, 180.0), (250.0, 225.0, 200.0), 1.2)
    lit = Appearance(change.background, change.target).apply(images)
    np.testing.assert_array_equal(change.apply(images), zoom(lit, 1.2))


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
