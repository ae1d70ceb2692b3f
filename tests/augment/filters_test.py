import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import fft, ndimage, stats

from bloodjax.augment import filters, planes

SIZES = [(37, 41), (48, 32)]


@pytest.fixture(params=SIZES, ids=str)
def image(request):
    """An image with edges, plain areas and integer grey levels, including the extremes."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-60, 315, (*(-(-n // 6) for n in request.param), 3))
    large = coarse.repeat(6, axis=0).repeat(6, axis=1)[: request.param[0], : request.param[1]]
    return np.round(np.clip(large + rng.normal(0, 8, large.shape), 0, 255)).astype(np.float32)


def pillow(image):
    return Image.fromarray(image.astype(np.uint8))


def convolved(image, kernel):
    planes = [ndimage.convolve(image[..., c], kernel, mode="reflect") for c in range(3)]
    return np.stack(planes, axis=-1)


def distances(reach):
    return np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])


def test_vignette_dims_with_the_square_of_the_distance(run, image):
    found = run(filters.vignette, image, 0.6)
    rows, columns = (np.linspace(-1, 1, n) for n in image.shape[:2])
    distance = (rows[:, None] ** 2 + columns[None] ** 2) / 2
    np.testing.assert_allclose(found, image * (1 - 0.6 * distance)[..., None], atol=1e-3)
    np.testing.assert_allclose(found[0, 0], 0.4 * image[0, 0], atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.9, 3.0])
def test_sharpness_is_pillow_s(run, in_form, image, factor):
    expected = np.asarray(ImageEnhance.Sharpness(pillow(image)).enhance(factor), np.float32)
    # Pillow rounds the smoothed image, then truncates the blend to an integer.
    tolerance = 1.0 + 0.5 * abs(1 - factor)
    sharpness = in_form(filters.sharpness, planes.sharpness)
    np.testing.assert_allclose(run(sharpness, image, factor), expected, atol=tolerance)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_gaussian_blur_is_scipy_s(run, in_form, image, sigma):
    expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect", radius=(6, 6, 0))
    blur = in_form(filters.gaussian_blur, planes.gaussian_blur)
    np.testing.assert_allclose(run(blur, image, sigma), expected, atol=1e-3)


def test_gaussian_blur_reaches_as_far_as_asked(run, image):
    expected = ndimage.gaussian_filter(image, (4, 4, 0), mode="reflect", radius=(12, 12, 0))
    found = run(filters.gaussian_blur, image, 4.0, reach=12)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(run(filters.gaussian_blur, image, 4.0) - expected).max() > 1


@pytest.mark.parametrize("radius", [0.5, 1.3, 3.0])
def test_defocus_is_the_convolution_with_a_disk(run, in_form, image, radius):
    kernel = np.clip(radius + 0.5 - distances(3), 0, 1)
    expected = convolved(image, kernel / kernel.sum())
    defocus = in_form(filters.defocus, planes.defocus)
    np.testing.assert_allclose(run(defocus, image, radius), expected, atol=1e-3)


def test_random_conv_is_scipy_s_correlation(run, in_form, image):
    kernel = np.random.default_rng(3).normal(0, 0.2, (3, 3, 3, 3)).astype(np.float32)
    planes_of = np.moveaxis(image - 128, -1, 0)
    convolved = [
        128
        + sum(ndimage.correlate(p, k, mode="reflect") for p, k in zip(planes_of, each, strict=True))
        for each in np.moveaxis(kernel, (3, 2), (0, 1))
    ]
    expected = np.clip(image + 0.7 * (np.stack(convolved, -1) - image), 0, 255)
    by_planes = in_form(filters.random_conv, lambda x, *params: planes.random_conv(x, params))
    np.testing.assert_allclose(run(by_planes, image, kernel, 0.7), expected, atol=0.01)
    np.testing.assert_array_equal(run(by_planes, image, kernel, 0.0), image)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 1.0])
def test_impulse_noise_is_scikit_image_s_salt_and_pepper(run, share):
    util = pytest.importorskip("skimage.util")
    grey = np.full((200, 200, 3), 100, np.float32)
    found = run(filters.impulse_noise, grey, jax.random.key(0), share)
    reference = util.random_noise(grey[..., 0] / 255, "s&p", rng=0, amount=share) * 255
    assert np.all(found == found[..., :1])
    for value in (0, 100, 255):
        expected = (reference.round() == value).mean()
        assert (found == value).mean() == pytest.approx(expected, abs=0.01)


def test_random_kernels_keep_the_variance():
    kernels = np.asarray(
        jax.jit(jax.vmap(filters.random_kernel))(jax.random.split(jax.random.key(0), 4000))
    )
    is_point = (kernels.reshape(-1, 9, 9)[:, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all((1, 2))
    assert abs(is_point.mean() - 0.5) < 0.05
    for some in (kernels[is_point], kernels[~is_point]):
        assert abs((some**2).sum((1, 2, 3)).mean() - 1) < 0.05


def test_a_disk_covers_its_radius(run):
    point = np.zeros((15, 15, 3), np.float32)
    point[7, 7] = 255.0
    for radius in (1.0, 2.0, 3.0):
        # The brightest pixels have the kernel's weight 1; their value is their share of the disk.
        area = 255 / float(run(filters.defocus, point, radius).max())
        assert area == pytest.approx(np.pi * radius**2, rel=0.1)


@pytest.mark.parametrize(("length", "angle"), [(1.5, 17.0), (5.0, 0.0), (9.0, 115.0), (6.5, -46.0)])
def test_motion_blur_is_the_convolution_with_a_line(run, in_form, image, length, angle):
    kernel = np.zeros((9, 9))
    end = (length - 1) / 2 * np.array([-np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    # Distance to the segment, approximated by the nearest of many points on it.
    way = np.linspace(-end, end, 4001)
    for row, column in itertools.product(range(-4, 5), repeat=2):
        distance = np.hypot(*(way - (row, column)).T).min()
        kernel[row + 4, column + 4] = max(1 - distance, 0)
    expected = convolved(image, kernel / kernel.sum())
    blur = in_form(filters.motion_blur, lambda x, *params: planes.motion_blur(x, params))
    np.testing.assert_allclose(run(blur, image, length, angle), expected, atol=1e-2)


def test_motion_blur_goes_along_the_rows_at_angle_0_and_up_to_the_right_at_45_degrees(run):
    point = np.zeros((15, 15, 3), np.float32)
    point[7, 7] = 250.0
    along = run(filters.motion_blur, point, 5.0, 0.0)[..., 0]
    np.testing.assert_allclose(along[7, 5:10], 50, atol=1e-3)
    assert along.sum() == pytest.approx(250, abs=1e-2)
    rising = run(filters.motion_blur, point, 7.0, 45.0)[..., 0]
    assert rising[5, 9] > 10
    assert rising[9, 5] > 10
    assert rising[5, 5] == 0


def test_strengths_beyond_the_reach_are_cut_off(run, image):
    for cut, strongest in (
        (run(filters.defocus, image, 9.0), run(filters.defocus, image, 3.0)),
        (
            run(filters.motion_blur, image, 30.0, 25.0),
            run(filters.motion_blur, image, 9.0, 25.0),
        ),
    ):
        np.testing.assert_array_equal(cut, strongest)


def test_random_levels_are_equally_likely_and_independent(run):
    found = run(filters.random_levels, jax.random.key(0), size=(128, 96), bits=4)
    assert found.shape == (128, 96, 3)
    counts = np.array([np.sum(found == level) for level in range(16)])
    assert counts.sum() == found.size
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = [(found[..., a], found[..., b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    pairs += [(found[1:], found[:-1]), (found[:, 1:], found[:, :-1])]
    for one, other in pairs:
        together = np.bincount((16 * one + other).astype(int).ravel(), minlength=256)
        assert stats.chisquare(together).pvalue > 1e-3
    most = run(filters.random_levels, jax.random.key(0), size=(128, 96), bits=10)
    assert (most.min(), most.max()) == (0, 1023)


def test_noise_is_gaussian_of_the_standard_deviation(run):
    grey = np.full((64, 64, 3), 127.0, np.float32)
    found = run(filters.noise, grey, jax.random.key(0), 12.0) - 127
    assert abs(found.mean()) < 4 * 12 / np.sqrt(found.size)
    assert found.std() == pytest.approx(12, rel=0.03)
    assert (np.abs(found) < 12).mean() == pytest.approx(0.6827, abs=0.02)
    assert (np.abs(found) < 24).mean() == pytest.approx(0.9545, abs=0.01)
    assert stats.kstest(found.ravel() / 12, stats.norm.cdf).pvalue > 1e-3


def test_shot_noise_has_a_variance_proportional_to_intensity(run):
    for level, expected in ((0.0, 0.0), (40.0, 160.0 / 4), (160.0, 160.0)):
        grey = np.full((64, 64, 3), level, np.float32)
        std = np.sqrt(255.0)  # The variance equals the intensity.
        found = run(filters.shot_noise, grey, jax.random.key(1), std)
        assert found.var() == pytest.approx(expected, rel=0.06)


def test_another_key_is_another_noise(run, image):
    first, second = (run(filters.noise, image, jax.random.key(k), 9.0) for k in (0, 1))
    assert np.abs(first - second).mean() > 4


# Odd sides only: with an even one, the middle pixel's centre is on a block's edge, and Pillow's
# rounding decides to which block it belongs.
@pytest.mark.parametrize("scale", [1.0, 0.62, 0.47, 0.18, 0.01])
def test_pixelate_is_pillow_s_box_and_nearest(run, image, scale):
    size = image.shape[1::-1]
    small = tuple(max(round(n * scale), 1) for n in size)
    expected = pillow(image).resize(small, Image.Resampling.BOX)
    expected = np.asarray(expected.resize(size, Image.Resampling.NEAREST), np.float32)
    np.testing.assert_allclose(run(filters.pixelate, image, scale), expected, atol=1.01)


@pytest.fixture(params=[(37, 41), (48, 32), (96, 96)], ids=str)
def cell(request):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.uniform(-200, 455, (*request.param, 3)), (4, 4, 0))
    return np.round(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255)).astype(np.float32)


def by_pillow(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(file), np.float32)


@pytest.mark.parametrize("quality", [5, 20, 49, 50, 75, 90, 100])
def test_jpeg_loses_what_pillow_s_does(run, cell, quality):
    found, expected = run(filters.jpeg, cell, float(quality)), by_pillow(cell, quality)
    # libjpeg rounds colours before the transform, so some frequencies are rounded differently.
    difference = np.abs(found - expected)
    assert difference.mean() < 1.25
    assert np.median(difference) < 1.0
    assert difference.mean() < 0.35 * np.abs(cell - expected).mean()
    assert np.abs((found - expected).mean()) < 0.4


def test_a_lower_quality_loses_more(run, cell):
    losses = [
        np.abs(run(filters.jpeg, cell, q) - cell).mean() for q in (95.0, 75.0, 50.0, 20.0, 5.0)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1] / 3


def test_a_grey_image_s_blocks_hold_multiples_of_the_table_s_steps(run):
    grey = np.random.default_rng(1).uniform(100, 150, (16, 16, 1)).repeat(3, axis=2)
    found = run(filters.jpeg, grey.astype(np.float32), 50.0)
    np.testing.assert_allclose(found, found[..., :1].repeat(3, axis=2), atol=1e-2)
    waves = fft.dctn(found[:8, :8, 0].astype(np.float64) - 128, norm="ortho")
    # The first steps of Annex K's luminance table.
    steps = np.array([16, 11, 10, 16, 24, 40, 51, 61])
    np.testing.assert_allclose(waves[0], np.round(waves[0] / steps) * steps, atol=1e-2)


def test_no_strength_leaves_the_image_unchanged(run, image):
    key = jax.random.key(0)
    for same in (
        run(filters.vignette, image, 0.0),
        run(filters.sharpness, image, 1.0),
        run(filters.gaussian_blur, image, 0.0),
        run(filters.defocus, image, 0.0),
        run(filters.motion_blur, image, 1.0, 40.0),
        run(filters.noise, image, key, 0.0),
        run(filters.shot_noise, image, key, 0.0),
        run(filters.pixelate, image, 1.0),
    ):
        np.testing.assert_array_equal(same, image)


STRENGTHS = {
    "vignette": [0.0, 0.3, 1.0],
    "sharpness": [0.0, 1.0, 4.0],
    "gaussian_blur": [0.0, 0.7, 2.0],
    "defocus": [0.0, 1.2, 3.0],
    "motion_blur": [1.0, 2.0, 8.0],
    "noise": [0.0, 9.0, 90.0],
    "shot_noise": [0.0, 9.0, 90.0],
    "pixelate": [0.01, 0.6, 1.0],
    "jpeg": [10.0, 50.0, 95.0],
}


@pytest.mark.full
@pytest.mark.parametrize("name", list(STRENGTHS))
def test_vmap_and_map_agree_with_one_image_at_a_time(agree, image, name):
    op, strengths = getattr(filters, name), [jnp.array(STRENGTHS[name])]
    if name in ("noise", "shot_noise"):
        strengths.insert(0, jax.random.split(jax.random.key(0), 3))
    if name == "motion_blur":
        strengths.append(jnp.array([10.0, 60.0, 170.0]))
    # A frequency halfway between two multiples of a step may be rounded up or down.
    agree(op, image, *strengths, share=0.98 if name == "jpeg" else 1.0)
