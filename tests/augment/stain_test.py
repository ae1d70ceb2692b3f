import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import planes
from bloodjax.augment.stain import (
    RGB_FROM_SMEAR,
    RGB_FROM_STAINS,
    SMEAR_FROM_RGB,
    STAINS_FROM_RGB,
    change_density,
    smear,
    stain_jitter,
)

NONE = np.zeros(3, np.float32)
ONE = np.ones(3, np.float32)


@pytest.fixture
def colour():
    return pytest.importorskip("skimage.color", reason="needs the extra [parity]")


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 255, (37, 41, 3)).round().astype(np.float32)


@pytest.fixture
def stained(colour):
    """An image with positive amounts of all stains, because scikit-image clips negative ones."""
    amounts = np.random.default_rng(1).uniform(0, 0.08, (37, 41, 3))
    return colour.hed2rgb(amounts).astype(np.float32) * 255


def test_the_matrices_are_scikit_image_s(colour):
    np.testing.assert_allclose(RGB_FROM_STAINS, colour.rgb_from_hed, rtol=1e-6)
    np.testing.assert_allclose(STAINS_FROM_RGB, colour.hed_from_rgb, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ([1.4, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.8, 1.3, 1.1], [0.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0], [0.05, 0.1, 0.02]),
        ([0.9, 1.2, 1.0], [-0.1, 0.1, -0.02]),
    ],
)
def test_stain_jitter_is_what_scikit_image_s_conversions_make_of_it(
    run, colour, stained, scale, shift
):
    scale, shift = np.array(scale, np.float32), np.array(shift, np.float32)
    amounts = colour.rgb2hed(stained / 255)
    # scikit-image's unit of density is a millionth, ours is a tenth.
    expected = colour.hed2rgb(amounts * scale + shift / 6) * 255
    np.testing.assert_allclose(run(stain_jitter, stained, scale, shift), expected, atol=0.01)


def test_any_colour_becomes_what_the_formula_says(run, image):
    scale, shift = np.array([0.8, 1.2, 1.1]), np.array([0.1, -0.1, 0.05])
    density = -np.log10(np.maximum(image, 1).astype(np.float64) / 255)
    amounts = density @ np.linalg.inv(np.float64(RGB_FROM_STAINS)) * scale + shift
    expected = np.clip(255 * 10 ** -(amounts @ RGB_FROM_STAINS), 0, 255)
    found = run(stain_jitter, image, scale.astype(np.float32), shift.astype(np.float32))
    bright = image >= 1
    np.testing.assert_allclose(found[bright], expected[bright], atol=0.01)
    assert np.all(found[~bright] == 0)


def test_another_light_is_a_shift_of_the_stains(run, image):
    gains = np.array([1.1, 1.0, 0.8], np.float32)
    shift = (-np.log10(gains) @ STAINS_FROM_RGB).astype(np.float32)
    expected = np.clip(image * gains, 0, 255)
    np.testing.assert_allclose(run(stain_jitter, image, ONE, shift), expected, atol=0.01)


def test_no_strength_leaves_the_image_unchanged(run, image):
    np.testing.assert_array_equal(run(stain_jitter, image, ONE, NONE), image)


def as_smear(image, scale, shift, turned):
    return change_density(image, *smear(scale, shift, turned))


@pytest.fixture
def smeared(in_form):
    """`as_smear` by the form for images, and by that for planes."""

    def on_planes(x, *parameters):
        return planes.change_density(x, jax.vmap(smear)(*parameters))

    return in_form(as_smear, on_planes)


def test_the_stains_of_a_smear_are_those_that_scikit_image_has_for_giemsa(colour):
    np.testing.assert_allclose(RGB_FROM_SMEAR, colour.rgb_from_bex, rtol=1e-6)
    np.testing.assert_allclose(SMEAR_FROM_RGB, colour.bex_from_rgb, rtol=1e-5, atol=1e-6)


def test_a_smear_is_what_scikit_image_separates_and_combines(run, smeared, colour):
    amounts = np.random.default_rng(1).uniform(0, 0.08, (37, 41, 3))
    image = colour.combine_stains(amounts, colour.rgb_from_bex).astype(np.float32) * 255
    scale, shift = np.array([0.7, 1.3, 1.1], np.float32), np.array([0.1, 0.05, 0.02], np.float32)
    amounts = colour.separate_stains(image / 255, colour.bex_from_rgb)
    # scikit-image's unit of density is a millionth, ours is a tenth.
    amounts = amounts * scale + shift / 6
    expected = colour.combine_stains(amounts, colour.rgb_from_bex) * 255
    flat = np.zeros((2, 2), np.float32)
    np.testing.assert_allclose(run(smeared, image, scale, shift, flat), expected, atol=0.02)


@pytest.mark.parametrize("stain", [0, 1])
def test_a_stain_turns_by_its_angle(stain):
    angle = np.radians(12.0)
    for direction in (0, 1):
        turned = np.zeros((2, 2), np.float32)
        turned[stain, direction] = np.tan(angle)
        change, added = smear(*map(jnp.asarray, (ONE, NONE, turned)))
        # What a unit of each stain absorbs then.
        new = RGB_FROM_SMEAR + RGB_FROM_SMEAR @ np.asarray(change)
        old = np.float64(RGB_FROM_SMEAR)
        np.testing.assert_allclose(np.delete(new, stain, 0), np.delete(old, stain, 0), atol=1e-6)
        lengths = np.linalg.norm(new[stain]), np.linalg.norm(old[stain])
        np.testing.assert_allclose(*lengths, rtol=1e-3)
        cosine = new[stain] @ old[stain] / np.prod(lengths)
        np.testing.assert_allclose(cosine, np.cos(angle), atol=1e-4)
        np.testing.assert_array_equal(added, NONE)
        nearer = new[stain] @ old[1 - stain] > old[stain] @ old[1 - stain] + 0.05
        assert nearer == (direction == 0)


def test_no_change_of_a_smear_leaves_the_image_unchanged(run, smeared, image):
    found = run(smeared, image, ONE, NONE, np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(found, image)


@pytest.mark.full
def test_vmap_and_map_agree_with_one_image_at_a_time(agree, image):
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.5, 1.5, (3, 3)).astype(np.float32)
    shift = rng.uniform(-0.2, 0.2, (3, 3)).astype(np.float32)
    agree(stain_jitter, image, scale, shift)
