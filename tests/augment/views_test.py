import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from bloodjax.augment import views
from bloodjax.augment.zoom import zoom
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError

SIZE = 32


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(8, SIZE, seed=3).images


def by_pillow(images, function):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images])


def assert_close(found, expected, levels=1):
    assert found.dtype == np.uint8
    gap = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert gap.max() <= levels


def enhanced(kind, factor):
    return lambda image: getattr(ImageEnhance, kind)(image).enhance(factor)


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (views.brightness, "Brightness"),
        (views.contrast, "Contrast"),
        (views.saturation, "Color"),
    ],
)
@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2])
def test_colour_is_pillow_s(cells, view, kind, factor):
    assert_close(view(jnp.asarray(cells), factor), by_pillow(cells, enhanced(kind, factor)))


def test_auto_contrast_is_pillow_s(cells):
    expected = by_pillow(cells, lambda image: ImageOps.autocontrast(image, preserve_tone=True))
    assert np.abs(expected.astype(int) - cells).max() > 5
    # Pillow truncates where we round, so greys differ by at most one level.
    assert_close(views.auto_contrast(jnp.asarray(cells)), expected, levels=3)


def test_auto_contrast_leaves_a_flat_image():
    flat = jnp.full((2, 8, 8, 3), 77, jnp.uint8)
    np.testing.assert_array_equal(views.auto_contrast(flat), flat)


def test_grey_world_takes_a_tint_away(cells):
    faint = (cells // 2).astype(np.uint8)
    tinted = np.round(faint * np.array([1.0, 0.8, 0.6])).astype(np.uint8)
    means = np.asarray(views.grey_world(jnp.asarray(tinted))).mean(axis=(1, 2))
    np.testing.assert_allclose(means, means.mean(axis=1, keepdims=True).repeat(3, 1), atol=0.5)
    assert np.ptp(tinted.mean(axis=(1, 2)), axis=1).min() > 5
    black = jnp.zeros((1, 8, 8, 3), jnp.uint8)
    np.testing.assert_array_equal(views.grey_world(black), black)


def blurred(images):
    sigma = (0, 1, 1, 0)
    return scipy.ndimage.gaussian_filter(images.astype(float), sigma, mode="reflect", radius=3)


def test_blur_and_unsharp_are_scipy_s(cells):
    smooth = blurred(cells)
    assert_close(views.blur(jnp.asarray(cells)), np.round(smooth))
    sharp = np.clip(np.round(cells + 0.5 * (cells - smooth)), 0, 255)
    assert_close(views.unsharp(jnp.asarray(cells)), sharp)


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_crops_are_bilinear_resizes_of_a_square(cells, down, right):
    top, left = int(4 * down), int(4 * right)  # 4 of 32 pixels are cropped.
    box = (left, top, left + 28, top + 28)
    bilinear = Image.Resampling.BILINEAR
    expected = by_pillow(cells, lambda image: image.crop(box).resize((SIZE, SIZE), bilinear))
    assert_close(views.crop(jnp.asarray(cells), down, right), expected)


@pytest.mark.parametrize("name", sorted(views.SETS))
def test_the_first_view_is_the_image_and_all_differ(cells, name):
    found = [np.asarray(function(jnp.asarray(cells))) for function in views.named(name).values()]
    np.testing.assert_array_equal(found[0], cells)
    assert all(view.shape == cells.shape and view.dtype == np.uint8 for view in found)
    for i, view in enumerate(found):
        assert not any(np.array_equal(view, other) for other in found[:i])


def test_symmetries_are_called_what_they_are(cells):
    found = {name: np.asarray(f(jnp.asarray(cells))) for name, f in views.named("d4").items()}
    for degrees in (90, 180, 270):
        turned = np.rot90(cells, degrees // 90, axes=(1, 2))
        np.testing.assert_array_equal(found[f"rotate_{degrees}"], turned)
    np.testing.assert_array_equal(found["flip_left_right"], cells[:, :, ::-1])
    np.testing.assert_array_equal(found["flip_up_down"], cells[:, ::-1])
    np.testing.assert_array_equal(found["transpose"], cells.swapaxes(1, 2))
    np.testing.assert_array_equal(found["transverse"], cells.swapaxes(1, 2)[:, ::-1, ::-1])


def test_joined_sets_are_every_view_of_every_view(cells):
    found = views.named("flip+crops")
    assert len(found) == 4 * 6
    assert next(iter(found)) == views.IMAGE
    images = jnp.asarray(cells)
    both = jax.jit(found["rotate_180+top_left"])(images)
    np.testing.assert_array_equal(both, views.crop(images[:, ::-1, ::-1], 0.0, 0.0))


def test_zoomed_symmetries_are_those_of_d4_in_three_sizes(cells):
    images, found = jnp.asarray(cells), views.named("d4_zoom")
    symmetries = views.named("d4")
    assert len(found) == len(symmetries) == 8
    sizes = (1.0, 1.15, 0.9)
    for i, (view, symmetry) in enumerate(zip(found.values(), symmetries.values(), strict=True)):
        np.testing.assert_array_equal(view(images), zoom(symmetry(images), sizes[i % 3]))
    assert list(found)[:3] == [views.IMAGE, "flip_left_right+larger", "flip_up_down+smaller"]


@pytest.mark.parametrize("name", ["none", "d4", "d4+crops", "colour+robust+flip", "d4+zoom"])
def test_known_names(name):
    assert views.is_known(name)
    assert views.check(name, "--tta") == name


@pytest.mark.parametrize(
    "name", ["", "d8", "d4+", "d4+none", "flip+d4", "crops+crops", "d4_zoom+d4", "zoom+d4_zoom"]
)
def test_unknown_names(name):
    assert not views.is_known(name)
    with pytest.raises(UserError, match=rf"--tta is '{name.replace('+', '.')}', expected none, "):
        views.check(name, "--tta")


def test_known_sets_that_cannot_be_joined_are_named():
    with pytest.raises(UserError, match=r"joined by \+, of which flip and d4 are none$"):
        views.check("flip+d4", "--tta")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"selected, or .*; did you mean crops\?$"):
        views.check("d4+cropped", "--tta", ("selected",))
    with pytest.raises(UserError, match=r"did you mean colour\?$"):
        views.named("color")
    assert views.check("selected", "--tta", ("selected",)) == "selected"
