import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import deposits

SIZE = (40, 48)


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 255, (*SIZE, 3)).round().astype(np.float32)


def spots(centres, radii, **changes):
    """Round opaque black spots with a sharp edge, and changes of them."""
    n = len(radii)
    fields = {
        "centre": np.array(centres, np.float32),
        "radius": np.array(radii, np.float32),
        "ragged": np.zeros((n, 2, 2), np.float32),
        "opacity": np.ones(n, np.float32),
        "inside": np.float32(1),
        "rim": np.float32(0),
        "blur": np.float32(1e-3),
        "colour": np.zeros(3, np.float32),
    }
    return deposits.Spots(**fields | changes)


def sampled(amount, n=4000, size=SIZE):
    def one(key):
        return deposits.random_spots(key, size, jnp.float32(amount))

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n))
    return jax.tree.map(np.asarray, found)


def test_round_spots_are_scikit_image_s_disks(run, image):
    draw = pytest.importorskip("skimage.draw")
    placed = [(10, 12, 5.3), (30, 30.5, 9.1), (38, 2, 7.2), (12, 16, 4.3)]
    expected = image.copy()
    for row, column, radius in placed:
        expected[draw.disk((row, column), radius, shape=SIZE)] = 0
    asked = spots([spot[:2] for spot in placed], [spot[2] for spot in placed])
    np.testing.assert_array_equal(run(deposits.cover, image, asked), expected)


def test_a_spot_blends_with_its_colour_inside_and_at_the_rim(run, image):
    red = np.array([200, 10, 20], np.float32)
    bubble = spots(
        [(20, 24)],
        [12],
        opacity=np.array([0.6], np.float32),
        inside=np.float32(0.5),
        rim=np.float32(3),
        colour=red,
    )
    found = run(deposits.cover, image, bubble)
    distance = np.hypot(*(np.indices(SIZE) - np.array([20, 24])[:, None, None]))
    for opacity, where in (
        (0.0, distance > 12.1),
        (0.6, (distance < 11.9) & (distance > 9.1)),
        (0.3, distance < 8.9),
    ):
        expected = image + opacity * (red - image)
        np.testing.assert_allclose(found[where], expected[where], atol=1e-3)


def test_where_two_spots_overlap_the_more_opaque_one_counts(run, image):
    two = spots([(20, 20), (20, 26)], [8, 8], opacity=np.array([0.5, 0.25], np.float32))
    found = run(deposits.cover, image, two)
    np.testing.assert_allclose(found[20, 23], image[20, 23] / 2, atol=1e-3)
    np.testing.assert_allclose(found[20, 33], image[20, 33] * 0.75, atol=1e-3)


def test_the_edge_of_a_ragged_spot_follows_its_waves(run):
    """Radii measured along rays, against the cosines and sines of the angle."""
    amplitudes = np.array([[[0.15, -0.1], [0.05, 0.12]]], np.float32)
    white = np.full((200, 200, 3), 255, np.float32)
    found = run(deposits.cover, white, spots([(100, 100)], [60], ragged=amplitudes))
    for angle in np.linspace(0, 2 * np.pi, 17):
        along = np.arange(0, 99, 0.25)
        rows = np.rint(100 + along * np.sin(angle)).astype(int)
        columns = np.rint(100 + along * np.cos(angle)).astype(int)
        radius = along[found[rows, columns, 0] == 0].max()
        waves = [np.array([np.cos(turns * angle), np.sin(turns * angle)]) for turns in (2, 3)]
        expected = 60 * (1 + sum(a @ w for a, w in zip(amplitudes[0], waves, strict=True)))
        assert radius == pytest.approx(expected, abs=1.5)


def test_a_blurred_edge_falls_over_its_width(run):
    white = np.full((*SIZE, 3), 255, np.float32)
    found = run(deposits.cover, white, spots([(20, 24)], [10], blur=np.float32(4)))
    np.testing.assert_allclose(found[20, 24 + 10, 0], 127.5, atol=0.5)
    np.testing.assert_allclose(found[20, 24 + 9, 0], 255 / 4, atol=0.5)
    assert np.all(found[20, 24 : 24 + 8] == 0)
    assert np.all(found[20, 24 + 13 :] == 255)


def test_nothing_changes_without_opacity(run, image):
    none = spots([(20, 20)], [8], opacity=np.zeros(1, np.float32))
    np.testing.assert_array_equal(run(deposits.cover, image, none), image)


def test_spots_are_of_the_number_size_place_and_colour_that_are_told():
    found = sampled(1.0)
    number = (found.opacity > 0).sum(1)
    assert number.min() == 1
    assert number.max() == deposits.MOST_SPOTS
    assert (number == 1).mean() > 0.3  # The root of 1/8.
    assert found.opacity.max() == 1
    assert found.opacity[:, 0].min() == pytest.approx(0.3, abs=0.01)
    largest = 0.2 * min(SIZE)
    assert 0.99 * largest < found.radius.max() <= largest
    assert found.radius.min() == pytest.approx(0.4 * largest, rel=0.01)
    assert np.all((found.centre >= 0) & (found.centre < SIZE))
    np.testing.assert_allclose(found.centre.mean((0, 1)), np.array(SIZE) / 2, rtol=0.02)
    black, white = ((found.colour == value).all(1).mean() for value in (0, 255))
    assert 0.15 < black < 0.25
    assert 0.15 < white < 0.25
    assert np.all((found.inside >= 0.5) & (found.inside <= 1))


def test_magnitude_is_the_largest_radius():
    for amount, share in ((0.01, 0.0119), (0.5, 0.105)):
        assert sampled(amount).radius.max() == pytest.approx(share * min(SIZE), rel=0.01)
    assert not sampled(0.0).opacity.any()


def test_images_are_covered_one_by_one_as_together(agree, image):
    leaves, structure = jax.tree.flatten(sampled(1.0, 5))

    def cover(x, *fields):
        return deposits.cover(x, jax.tree.unflatten(structure, fields))

    agree(cover, image, *leaves)
