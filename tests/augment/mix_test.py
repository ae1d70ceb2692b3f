import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment.mix import mix, mix_amplitudes, mix_densities, neighbours
from bloodjax.augment.policy import Mix

N = 256


def run(spec, seed=0, n=N):
    """Mixes constant images, each of another class."""
    keys = jax.random.split(jax.random.key(seed), n)
    images = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, 12, 10, 3))
    mixed, targets = jax.jit(mix, static_argnums=0)(spec, keys, images, jnp.eye(n))
    return np.asarray(mixed), np.asarray(targets)


def own_part(targets):
    return np.diag(targets)


def test_mixup_blends_images_and_labels_by_the_same_part():
    mixed, targets = run(Mix(mixup_alpha=0.4, mixup_p=1.0))
    own = own_part(targets)
    partner = np.arange(N) ^ 1
    np.testing.assert_allclose(targets[np.arange(N), partner], 1 - own, atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    expected = own * np.arange(N) + (1 - own) * partner
    np.testing.assert_allclose(
        mixed, np.broadcast_to(expected[:, None, None, None], mixed.shape), atol=1e-3
    )
    # Beta(0.4, 0.4): mean 1/2, variance 1 / (4 (2 * 0.4 + 1)).
    assert abs(own.mean() - 0.5) < 0.08
    assert abs(own.var() - 1 / (4 * 1.8)) < 0.03


def test_cutmix_labels_by_the_area_that_is_left():
    mixed, targets = run(Mix(cutmix_p=1.0))
    index = np.arange(N)[:, None, None, None]
    is_own = mixed == index
    assert np.all(is_own | (mixed == (index ^ 1)))
    np.testing.assert_allclose(is_own.mean((1, 2, 3)), own_part(targets), atol=1e-6)
    foreign = ~is_own[..., 0]
    box = foreign.any(1)[:, None, :] & foreign.any(2)[:, :, None]
    np.testing.assert_array_equal(foreign, box)  # The mixed pixels are one box.
    assert 0.2 < 1 - own_part(targets).mean() < 0.5


def test_each_happens_as_often_as_asked():
    _, targets = run(Mix(mixup_p=0.25, cutmix_p=0.25), n=2048)
    unmixed = np.isclose(own_part(targets), 1).mean()
    assert 0.45 < unmixed < 0.6  # Includes boxes of less than a pixel.
    mixed, targets = run(Mix(mixup_p=1e-9))
    np.testing.assert_array_equal(targets, np.eye(N))
    np.testing.assert_array_equal(mixed[:, 0, 0, 0], np.arange(N))


def test_a_neighbour_s_neighbour_is_oneself():
    x = jnp.arange(6)
    np.testing.assert_array_equal(neighbours(x), [1, 0, 3, 2, 5, 4])


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    means, spreads = rng.uniform(80, 170, (6, 1, 1, 3)), rng.uniform(5, 25, (6, 1, 1, 3))
    return np.clip(rng.normal(means, spreads, (6, 12, 13, 3)), 1, 255).astype(np.float32)


WEIGHTS = np.array([0.0, 1.0, 0.3, 0.6, 1.0, 0.0], np.float32)
PARTNER = np.arange(6) ^ 1


@pytest.mark.parametrize("band", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("width", [13, 12])
def test_amplitudes_are_mixed_as_with_numpy_s_transform(images, width, band):
    images = images[:, :, :width]
    waves = np.fft.fft2(np.float64(images), axes=(1, 2))
    amplitude = np.abs(waves)
    low = [np.abs(np.fft.fftfreq(n, 1 / n)) <= np.floor(band * n) for n in (12, width)]
    inside = (low[0][:, None] & low[1][None])[None, ..., None]
    mixed = amplitude + WEIGHTS[:, None, None, None] * (amplitude[PARTNER] - amplitude)
    waves *= np.where(inside, mixed / amplitude, 1)
    expected = np.fft.ifft2(waves, axes=(1, 2))
    assert np.abs(expected.imag).max() < 1e-9
    found = jax.jit(mix_amplitudes, static_argnums=2)(images, WEIGHTS, band)
    np.testing.assert_allclose(found, np.clip(expected.real, 0, 255), atol=2e-3)
    np.testing.assert_array_equal(found[0], images[0])
    if band == 0:
        np.testing.assert_allclose(found[1].mean((0, 1)), images[0].mean((0, 1)), atol=1e-3)


# 1 / n * n is less than 1 for these sizes, and 0.29 * 100 is less than 29.
@pytest.mark.parametrize(
    ("size", "band", "highest"), [(49, 0.5, 24), (98, 0.5, 49), (100, 0.29, 29)]
)
def test_the_band_has_its_highest_frequency(size, band, highest):
    angle = 2 * np.pi * highest * np.arange(size) / size
    wave = np.broadcast_to(np.cos(angle)[None, :, None], (size, size, 3))
    images = np.stack([128 + 20 * wave, 128 + 40 * wave]).astype(np.float32)
    found = jax.jit(mix_amplitudes, static_argnums=2)(images, np.ones(2, np.float32), band)
    np.testing.assert_allclose(found, images[::-1], atol=0.02)


def test_densities_take_the_mixed_mean_and_deviation(images):
    found = np.asarray(jax.jit(mix_densities)(images, WEIGHTS))
    np.testing.assert_array_equal(found[0], images[0])
    for statistic in (np.mean, np.std):
        before = statistic(-np.log(images / 255), (1, 2))
        expected = before + WEIGHTS[:, None] * (before[PARTNER] - before)
        inside = found.max((1, 2)) < 254.9
        assert inside.sum() > 12
        after = statistic(-np.log(found / 255), (1, 2))
        np.testing.assert_allclose(after[inside], expected[inside], atol=1e-4)


def test_a_flat_image_takes_the_colour_and_stays_flat():
    images = np.stack([np.full((8, 8, 3), 90.0), np.full((8, 8, 3), 200.0)]).astype(np.float32)
    found = np.asarray(jax.jit(mix_densities)(images, np.ones(2, np.float32)))
    np.testing.assert_allclose(found, images[::-1], rtol=1e-5)


def test_styles_keep_labels_and_are_as_frequent_as_asked():
    mixed, targets = run(Mix(fourier_p=0.25, fourier_band=0.0))
    np.testing.assert_array_equal(targets, np.eye(N))
    # Neighbours differ by 1, and the weight is uniform.
    moved = np.abs(mixed[:, 0, 0, 0] - np.arange(N))
    assert abs((moved > 0).mean() - 0.25) < 0.1
    assert abs(moved[moved > 0].mean() - 0.5) < 0.15
    assert moved.max() < 1


def test_a_device_mixes_within_its_share(images):
    keys = jax.random.split(jax.random.key(2), 6)
    mixed = jax.jit(mix, static_argnums=0)
    whole, targets = mixed(Mix(fourier_p=0.7), keys, images, jnp.eye(6))
    share, some = mixed(Mix(fourier_p=0.7), keys[2:4], images[2:4], jnp.eye(6)[2:4])
    np.testing.assert_allclose(share, whole[2:4], atol=1e-3)
    np.testing.assert_array_equal(some, targets[2:4])
    assert np.abs(whole - images).max() > 1


@pytest.mark.full
def test_styles_leave_the_random_numbers_of_labels_alone(images):
    keys = jax.random.split(jax.random.key(1), 6)
    styles = {"fourier_p": 0.5, "mixstyle_p": 0.5, "mixstyle_alpha": 1.0}
    mixed = jax.jit(mix, static_argnums=0)
    styled, same = mixed(Mix(**styles), keys, images, jnp.eye(6))
    np.testing.assert_array_equal(same, np.eye(6))
    expected = mixed(Mix(mixup_p=0.5, cutmix_p=0.5), keys, styled, jnp.eye(6))
    found = mixed(Mix(mixup_p=0.5, cutmix_p=0.5, **styles), keys, images, jnp.eye(6))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_styles_lower_to_products(platform):
    styles = Mix(fourier_p=0.5, mixstyle_p=0.5)
    images = jax.ShapeDtypeStruct((64, 96, 96, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 64))
    traced = jax.jit(mix, static_argnums=0).trace(styles, keys, images, jnp.eye(64))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text
    assert "fft" not in text
    assert "custom_call" not in text
