import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bloodjax.augment import colour, planes


@pytest.fixture
def image():
    """A cell-like image: a narrow range of values, few of them frequent."""
    rng = np.random.default_rng(0)
    return np.clip(rng.normal((180, 120, 150), (30, 40, 20), (37, 42, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(params=["images", "planes"])
def by_table(request, monkeypatch):
    """Applies to an image the table that `make` returns for the identity and the histogram."""
    if request.param == "planes":
        monkeypatch.setattr(colour.lax, "platform_dependent", lambda *a, tpu, **forms: tpu(*a))

    def call(image, make):
        x = jnp.asarray(image)
        if request.param == "images":
            return np.asarray(colour.look_up(x, make(colour.identity_table(), colour.histogram(x))))
        x = planes.from_images(x[None])
        table = make(colour.identity_table(), planes.histogram(x)[0])
        return np.asarray(planes.to_images(planes.look_up(x, table[None]))[0])

    return call


TABLES = {
    "brightness": (
        lambda t, h: colour.brightness(t, jnp.float32(1.4)),
        lambda p: ImageEnhance.Brightness(p).enhance(1.4),
    ),
    "contrast": (
        lambda t, h: colour.contrast(t, h, jnp.float32(0.3)),
        lambda p: ImageEnhance.Contrast(p).enhance(0.3),
    ),
    "more contrast": (
        lambda t, h: colour.contrast(t, h, jnp.float32(1.9)),
        lambda p: ImageEnhance.Contrast(p).enhance(1.9),
    ),
    "solarize": (
        lambda t, h: colour.solarize(t, jnp.float32(140.0)),
        lambda p: ImageOps.solarize(p, 140),
    ),
    "posterize": (
        lambda t, h: colour.posterize(t, jnp.float32(5.0)),
        lambda p: ImageOps.posterize(p, 5),
    ),
    "autocontrast": (colour.autocontrast, ImageOps.autocontrast),
    "equalize": (colour.equalize, ImageOps.equalize),
    "gamma": (
        lambda t, h: colour.gamma(t, jnp.float32(1.7)),
        lambda p: p.point([round(255 * (v / 255) ** 1.7) for v in range(256)] * 3),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_do_what_pillow_does(by_table, image, name):
    ours, pillow = TABLES[name]
    expected = np.asarray(pillow(Image.fromarray(image)), np.float32)
    assert np.abs(by_table(image, ours) - expected).max() <= 1
    assert np.abs(expected - image).max() > 6  # The operation has an effect.


@pytest.mark.parametrize("high", [63, 123, 126])
def test_autocontrast_reaches_white(by_table, high):
    ramp = np.repeat(np.arange(high + 1, dtype=np.uint8)[None, :, None], 3, axis=2)
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(ramp)))
    np.testing.assert_array_equal(by_table(ramp, colour.autocontrast), expected)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_an_image_of_one_colour_keeps_it(by_table, value):
    flat = np.full((9, 9, 3), value, np.uint8)
    for make in (colour.autocontrast, colour.equalize):
        np.testing.assert_array_equal(by_table(flat, make), flat)


def test_tables_compose_as_operations_one_after_the_other(by_table, image):
    def both(table, counted):
        brighter = colour.brightness(table, jnp.float32(1.3))
        return colour.equalize(brighter, colour.counts(brighter, counted))

    brighter = ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.3)
    expected = np.asarray(ImageOps.equalize(brighter), np.float32)
    # Equalisation enlarges differences of one grey level from Pillow's rounding.
    assert np.abs(by_table(image, both) - expected).mean() < 2


def test_a_histogram_counts_and_follows_a_table(image):
    found = colour.histogram(jnp.asarray(image))
    for c in range(3):
        np.testing.assert_array_equal(
            found[:, c], np.bincount(image[..., c].ravel(), minlength=256)
        )
    inverted = colour.counts(255 - colour.identity_table(), found)
    np.testing.assert_array_equal(inverted, found[::-1])


def test_a_shift_adds_to_each_channel_and_keeps_the_range(by_table, image):
    found = by_table(image, lambda t, h: colour.shift(t, jnp.array([20.0, -200.0, 0.0])))
    expected = np.clip(image + np.array([20.0, -200.0, 0.0]), 0, 255)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.9])
def test_saturation_is_pillow_s(image, factor):
    found = colour.mix_channels(
        jnp.asarray(image, jnp.float32), colour.saturation(jnp.float32(factor))
    )
    expected = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor), np.float32)
    # Pillow's grey is an integer, and so are its results.
    assert np.abs(np.asarray(found) - expected).max() <= 1 + 0.5 * abs(1 - factor)


@pytest.mark.parametrize("turns", [0.1, -0.5])
def test_hue_is_an_angle_in_yiq_space(image, turns):
    color = pytest.importorskip("skimage.color", reason="scikit-image is in the extra [parity]")
    yiq = color.rgb2yiq(image)
    turned = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(2j * np.pi * turns)
    expected = color.yiq2rgb(np.stack([yiq[..., 0], turned.real, turned.imag], -1))
    found = colour.mix_channels(jnp.asarray(image, jnp.float32), colour.hue(jnp.float32(turns)))
    np.testing.assert_allclose(found, np.clip(255 * expected, 0, 255), atol=0.1)


def test_matrices_compose_and_permute(image):
    x = jnp.asarray(image, jnp.float32)
    swapped = colour.permutation(jnp.array([2, 0, 1]))
    np.testing.assert_array_equal(colour.mix_channels(x, swapped), image[..., [2, 0, 1]])
    grey = colour.saturation(jnp.float32(0.0))
    both = colour.mix_channels(x, colour.then(swapped, grey))
    one_by_one = colour.mix_channels(colour.mix_channels(x, swapped), grey)
    np.testing.assert_allclose(both, one_by_one, atol=0.01)
