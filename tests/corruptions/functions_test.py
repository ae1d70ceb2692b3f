"""Distortions compared with Pillow, SciPy and known results; see also medmnistc_test.py."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from bloodjax.corruptions import blur, colour, compression, deposits, noise, optics


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def even(*rgb):
    return np.broadcast_to(np.uint8(rgb), (48, 48, 3)).copy()


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize(
    ("function", "enhance", "factors"),
    [
        (colour.brightness_up, ImageEnhance.Brightness, (1.1, 1.2, 1.3, 1.35, 1.4)),
        (colour.brightness_down, ImageEnhance.Brightness, (0.9, 0.8, 0.7, 0.6, 0.5)),
        (colour.contrast_up, ImageEnhance.Contrast, (1.1, 1.15, 1.2, 1.25, 1.3)),
        (colour.contrast_down, ImageEnhance.Contrast, (0.9, 0.8, 0.7, 0.6, 0.5)),
    ],
)
def test_brightness_and_contrast_are_pillow_s(function, enhance, factors, severity, image, rng):
    expected = enhance(Image.fromarray(image)).enhance(factors[severity - 1])
    np.testing.assert_array_equal(function(image, severity, rng), np.asarray(expected))


@pytest.mark.parametrize(("severity", "radius"), [(1, 2), (5, 6)])
def test_defocus_is_scipy_s_correlation_with_a_disc(severity, radius, image, rng):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(float)
    expected = ndimage.correlate(image.astype(float), disc[..., None] / disc.sum(), mode="mirror")
    np.testing.assert_allclose(blur.defocus_blur(image, severity, rng), expected, atol=1.001)


def test_a_trail_follows_its_angle():
    dot = even(0, 0, 0)
    dot[24, 24] = 255
    along = blur.trail_blur(dot, 5, 5.0, 0.0)
    y, x = np.nonzero(along[..., 0])
    assert set(y) == {24}
    assert x.tolist() == list(range(14, 25))  # From 10 pixels before the dot.
    y, x = np.nonzero(blur.trail_blur(dot, 5, 5.0, 45.0)[..., 0])
    assert len(y) > 5
    np.testing.assert_array_equal(y - 24, x - 24)


@pytest.mark.parametrize(
    ("function", "file_format", "quality"),
    [(compression.jpeg_compression, "JPEG", 15), (compression.webp_compression, "WEBP", 10)],
)
def test_files(function, file_format, quality, image, rng):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, quality=quality)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(function(image, 3, rng), expected)


def test_pixelate_holds_blocks(image, rng):
    found = compression.pixelate(image, 2, rng).reshape(24, 2, 24, 2, 3)
    blocks = image.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))
    assert (np.ptp(found, axis=(1, 3)) == 0).all()
    np.testing.assert_allclose(found[:, 0, :, 0], blocks, atol=1)


def test_posterize_leaves_so_many_levels(image, rng):
    assert np.unique(compression.posterize(image, 5, rng)).tolist() == [0, 85, 170, 255]
    assert len(np.unique(compression.posterize(image, 1, rng))) == 64


def test_saturate_keeps_value_and_hue_and_raises_saturation(rng):
    found = colour.saturate(even(200, 150, 100), 2, rng)[0, 0]
    # s = 0.5 -> 0.6: the lowest channel is 200 (1 - 0.6), and the middle one stays half way.
    np.testing.assert_allclose(found, [200, 140, 80], atol=1)
    np.testing.assert_allclose(colour.saturate(even(100, 100, 100), 2, rng)[0, 0], [100, 90, 90])
    np.testing.assert_array_equal(colour.saturate(even(0, 0, 0), 5, rng), even(0, 0, 0))


def test_white_balance_moves_red_against_blue(rng):
    found = colour.white_balance(even(100, 100, 100), 5, rng)[0, 0]
    assert sorted(found) == [77, 100, 130]
    assert found[1] == 100


def test_overexposure_clips_and_is_twice_the_light(rng):
    assert (colour.overexposure(even(250, 200, 190), 4, rng)[0, 0] >= 255).all()
    found = colour.overexposure(even(50, 50, 50), 4, rng)[0, 0, 0]
    assert found == round(50 * 2 ** (1 / 2.2))


def test_stain_variation_leaves_what_has_no_stain(rng):
    np.testing.assert_array_equal(colour.stain_variation(even(255, 255, 255), 5, rng), 255)


def test_noise_is_as_strong_as_it_says(rng):
    grey = np.full((200, 200, 3), 128, np.uint8)
    for severity, sigma in ((1, 0.02), (5, 0.12)):
        assert np.std(noise.gaussian_noise(grey, severity, rng) / 255) == pytest.approx(sigma, 0.05)
    shot = noise.shot_noise(grey, 1, rng) / 255
    assert shot.mean() == pytest.approx(128 / 255, 0.01)
    assert shot.var() == pytest.approx(128 / 255 / 250, 0.05)
    hit = (noise.impulse_noise(grey, 5, rng) != 128).all(axis=2)
    assert hit.mean() == pytest.approx(0.08, 0.1)


def test_a_vignette_spares_the_centre(rng):
    found = optics.vignette(even(200, 200, 200), 5, rng)[..., 0]
    assert found[24, 24] == 200
    assert found[0, 0] == pytest.approx(200 * (1 - 0.75 * (47 / 48) ** 2), abs=1)


def test_uneven_light_keeps_the_mean(rng):
    found = optics.uneven_illumination(even(150, 150, 150), 4, rng)[..., 0]
    assert found.mean() == pytest.approx(150, abs=0.5)
    assert found.max() / found.min() > 1.5


def test_rotation_is_pillow_s(rng):
    smooth = ndimage.gaussian_filter(rng.uniform(0, 255, (65, 65, 3)), (4, 4, 0))
    smooth = np.clip((smooth - smooth.mean()) * 5 + 128, 0, 255).astype(np.uint8)
    found = optics.rotation(smooth, 3, rng)[20:45, 20:45].astype(int)
    turned = [
        np.asarray(Image.fromarray(smooth).rotate(angle, Image.Resampling.BILINEAR))
        for angle in (27, -27)
    ]
    errors = [np.abs(found - t[20:45, 20:45]).mean() for t in turned]
    assert min(errors) < 1 < max(errors)


def test_a_shift_goes_as_far_as_it_says(rng):
    dot = np.zeros((101, 101, 3), np.uint8)
    dot[49:52, 49:52] = 255
    y, x, _ = ndimage.center_of_mass(optics.shift(dot, 4, rng))
    assert np.hypot(y - 50, x - 50) == pytest.approx(20.2, abs=0.2)


def test_scale_and_aberration_change_a_square_s_size(rng):
    square = np.zeros((101, 101, 3), np.uint8)
    square[30:71, 30:71] = 255
    across = optics.scale(square, 5, rng)[50, :, 0].sum() / 255
    assert min(abs(across - 41 * 1.5), abs(across - 41 / 1.5)) < 1
    red, green, blue = optics.chromatic_aberration(square, 5, rng)[50].sum(axis=0) / 255
    assert green == 41
    assert sorted((red, blue)) == pytest.approx([41 / 1.05, 41 * 1.05], abs=0.5)


def test_deposits_are_where_and_what_they_should_be(rng):
    grey = np.full((224, 224, 3), 120, np.uint8)
    spotted = deposits.stain_deposit(grey, 1, rng)
    assert set(np.unique(spotted)) == {0, 120}
    dark = (spotted == 0).all(axis=2)
    assert dark.sum() in deposits.inks(24).sum(axis=(1, 2))
    assert not dark[:10].any()
    assert not dark[:, :10].any()
    bubbles = deposits.bubble(grey, 5, rng)
    rim, inside = (round(120 + (255 - 120) * alpha / 255) for alpha in (130, 100))
    assert set(np.unique(bubbles)) == {120, inside, rim}
    assert (deposits.dust(grey, 3, rng) <= 120).all()
    assert (deposits.scratch(grey, 3, rng) >= 120).all()
