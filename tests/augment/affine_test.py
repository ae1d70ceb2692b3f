import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bloodjax.augment import affine, planes

SHAPE = (37, 42)
MAPS = {
    "turn": affine.rotation(jnp.float32(23.0)),
    "scale": affine.scaling(jnp.float32(1.3), jnp.float32(0.8)),
    "shear": affine.linear((1.0, 0.2), (0.1, 1.0)),
    "move": affine.translation(jnp.float32(5.5), jnp.float32(-9.25)),
    "all": affine.compose(
        affine.rotation(jnp.float32(170.0)), affine.translation(jnp.float32(50.0), jnp.float32(3.0))
    ),
}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


@pytest.fixture
def resample(in_form):
    def call(image, affine_map, fill):
        by_planes = functools.partial(planes.resample, fill=fill)
        return in_form(functools.partial(affine.resample, fill=fill), by_planes)(image, affine_map)

    return call


@pytest.mark.parametrize(("fill", "mode"), [("reflect", "mirror"), ("edge", "nearest")])
@pytest.mark.parametrize("name", MAPS)
def test_resampling_is_scipy_s(resample, image, name, fill, mode):
    found = resample(jnp.asarray(image), MAPS[name], fill)
    matrix = np.asarray(MAPS[name], np.float64)
    centre = (np.array(SHAPE) - 1) / 2
    offset = matrix[:, 2] + centre - matrix[:, :2] @ centre
    channels = [
        ndimage.affine_transform(
            image[..., c].astype(np.float64), matrix[:, :2], offset, order=1, mode=mode
        )
        for c in range(3)
    ]
    # Coordinates are float32, with an error of about 1e-5 pixels.
    np.testing.assert_allclose(found, np.stack(channels, -1), atol=0.02)


@pytest.mark.parametrize("degrees", [10.0, -37.0])
def test_a_rotation_is_pillow_s(resample, image, degrees):
    turned = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)
    found = resample(jnp.asarray(image), affine.rotation(jnp.float32(degrees)), "edge")
    middle = (slice(12, -12), slice(12, -12))
    # Pillow truncates to multiples of 1/65536.
    difference = np.abs(np.asarray(turned, np.float32) - np.asarray(found))[middle]
    assert difference.max() <= 1.5


def test_a_quarter_turn_a_move_and_a_magnification_go_the_right_way(resample):
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    x = jnp.asarray(square)
    turned = resample(x, affine.rotation(jnp.float32(90.0)), "edge")
    np.testing.assert_allclose(turned, np.rot90(square), atol=0.01)
    moved = resample(x, affine.translation(jnp.float32(2.0), jnp.float32(1.0)), "edge")
    np.testing.assert_array_equal(moved[2:, 1:], square[:-2, :-1])
    blank = np.zeros((9, 9, 3), np.uint8)
    blank[4, 4] = 200
    larger = resample(
        jnp.asarray(blank), affine.scaling(jnp.float32(3.0), jnp.float32(1.0)), "edge"
    )
    assert (np.asarray(larger[..., 0]) > 0).sum(0).tolist() == [0, 0, 0, 0, 5, 0, 0, 0, 0]


def test_composed_maps_are_the_one_after_the_other():
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (5, 5, 0))
    smooth = np.round(127 + 100 * smooth / np.abs(smooth).max()).astype(np.uint8)
    first, second = MAPS["turn"], MAPS["move"]
    at_once = affine.resample(jnp.asarray(smooth), affine.compose(first, second), "edge")
    once = jnp.round(affine.resample(jnp.asarray(smooth), first, "edge"))
    twice = affine.resample(once, second, "edge")
    middle = (slice(20, -20), slice(20, -20))
    assert np.abs(np.asarray(at_once - twice))[middle].max() < 2


def test_the_identity_changes_nothing(resample, image):
    found = jax.jit(resample, static_argnums=2)(jnp.asarray(image), affine.identity(), "reflect")
    np.testing.assert_array_equal(found, image)
