import jax
import jax.numpy as jnp
import numpy as np

from bloodjax.augment.mix import mix, neighbours
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
