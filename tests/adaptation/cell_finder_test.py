import functools

import numpy as np
import pytest

from bloodjax.adaptation import cell_finder
from bloodjax.data.synthetic.cells import render_with_masks
from bloodjax.data.synthetic.morphology import KINDS

GLASS = np.array([236.0, 226.0, 214.0])
# Optical density in red, green and blue.
NUCLEUS, CYTOPLASM = np.array([1.3, 1.9, 0.7]), np.array([0.15, 0.3, 0.15])
RED_CELL = np.array([0.2, 0.35, 0.25])


@functools.cache
def rendered(size):
    labels = np.arange(48, dtype=np.int32) % len(KINDS)
    return *render_with_masks(labels, size, seed=3), labels


def disc(size, y, x, radius):
    axis = np.arange(size) + 0.5
    return np.hypot(axis[:, None] - y, axis - x) <= radius


def drawn(size=96, at=(50.0, 44.0), cell=26.0, nucleus=15.0, glass=GLASS, others=True):
    """A cell whose nucleus is at the side, among red cells and platelets."""
    density = np.zeros((size, size, 3))
    if others:
        for y, x in ((2, 20), (90, 10), (88, 92), (12, 90)):
            density[disc(size, y * size / 96, x * size / 96, 15 * size / 96)] = RED_CELL
        density[disc(size, size / 20, size / 2, size / 30)] = NUCLEUS
    density[disc(size, *at, cell)] = CYTOPLASM
    density[disc(size, at[0] + 4, at[1] - 3, nucleus)] = NUCLEUS
    return (glass * np.exp(-density)).round().astype(np.uint8)


def centres(masks):
    axis = np.arange(masks.shape[1]) + 0.5
    rows = (masks.sum(2) @ axis) / masks.sum((1, 2))
    return np.stack([rows, (masks.sum(1) @ axis) / masks.sum((1, 2))], 1)


def test_a_drawn_cell_is_found_to_a_pixel():
    found = cell_finder.find(drawn()[None])
    np.testing.assert_allclose(found.nucleus_centre[0], (54, 41), atol=0.5)
    np.testing.assert_allclose(found.nucleus_diameter[0], 30, atol=1.5)
    np.testing.assert_allclose(found.cell_centre[0], (50, 44), atol=1)
    np.testing.assert_allclose(found.cell_diameter[0], 52, rtol=0.06)
    np.testing.assert_allclose(found.cell_box[0], (24, 18, 76, 70), atol=2.5)
    np.testing.assert_allclose(found.background[0], GLASS, atol=1)
    np.testing.assert_allclose(found.nucleus_density[0], NUCLEUS, rtol=0.1)
    assert found.has_nucleus[0]
    assert found.is_whole[0]


def test_positions_are_those_of_the_image_at_any_size():
    large = cell_finder.find(drawn(192, (100.0, 88.0), 52.0, 30.0)[None])
    np.testing.assert_allclose(large.nucleus_centre[0], (104, 85), atol=1)
    np.testing.assert_allclose(large.cell_diameter[0], 104, rtol=0.06)
    small = cell_finder.find(drawn(28, (14.0, 14.0), 8.0, 5.0)[None])
    np.testing.assert_allclose(small.nucleus_diameter[0], 10, atol=2)


def test_the_colour_of_the_light_changes_nothing_but_the_background():
    blue = np.array([190.0, 205.0, 240.0])
    warm, cold = (cell_finder.find(drawn(glass=glass)[None]) for glass in (GLASS, blue))
    np.testing.assert_allclose(cold.background[0], blue, atol=1)
    np.testing.assert_allclose(warm.cell_diameter, cold.cell_diameter, atol=0.5)
    np.testing.assert_allclose(warm.nucleus_centre, cold.nucleus_centre, atol=0.3)
    np.testing.assert_allclose(warm.nucleus_density, cold.nucleus_density, atol=0.05)


def test_uneven_light_is_not_taken_for_stain():
    slope = np.linspace(0.8, 1.05, 96)[:, None, None]
    uneven = (slope * drawn()).round().astype(np.uint8)
    even, found = (cell_finder.find(image[None]) for image in (drawn(), uneven))
    np.testing.assert_allclose(found.cell_diameter, even.cell_diameter, rtol=0.03)
    np.testing.assert_allclose(found.nucleus_diameter, even.nucleus_diameter, rtol=0.03)


def test_rendered_cells_are_found():
    images, masks, labels = rendered(96)
    found = cell_finder.find(images)
    assert found.has_nucleus.all()
    assert found.is_whole.mean() > 0.9
    away = np.linalg.norm(found.cell_centre - centres(masks), axis=1)
    ratio = found.cell_diameter / np.sqrt(4 / np.pi * masks.sum((1, 2)))
    assert np.median(away) < 3.5
    assert np.quantile(away, 0.9) < 9
    assert 1 < np.median(ratio) < 1.15
    assert np.quantile(abs(np.log(ratio)), 0.9) < np.log(1.35)
    # The nucleus is inside the cell, and a platelet is small.
    assert np.mean(found.nucleus_diameter < found.cell_diameter) > 0.95
    is_platelet = labels == list(KINDS).index("platelet")
    assert np.median(found.cell_diameter[is_platelet]) < 35
    assert np.median(found.cell_diameter[~is_platelet]) > 50


@pytest.mark.parametrize(
    "image",
    [
        np.full((96, 96, 3), 230, np.uint8),
        np.zeros((96, 96, 3), np.uint8),
        (GLASS * np.exp(disc(96, 48, 48, 20)[..., None] * -RED_CELL)).astype(np.uint8),
    ],
    ids=["empty glass", "black", "a red cell"],
)
def test_nothing_is_found_where_no_nucleus_is(image):
    found = cell_finder.find(image[None])
    assert not found.has_nucleus[0]
    assert not found.is_whole[0]
    assert np.isnan(found.nucleus_centre).all()
    assert np.isnan(found.cell_diameter).all()
    assert np.isfinite(found.background).all()


def test_a_cell_that_the_border_cuts_is_not_whole():
    found = cell_finder.find(drawn(at=(80.0, 48.0), cell=30.0, others=False)[None])
    assert found.has_nucleus[0]
    assert not found.is_whole[0]


def test_each_image_is_independent_of_the_others():
    images, *_ = rendered(96)
    together, alone = cell_finder.find(images[:5]), cell_finder.find(images[3:4])
    np.testing.assert_allclose(together.cell_box[3], alone.cell_box[0])
    np.testing.assert_allclose(together.nucleus_centre[3], alone.nucleus_centre[0])
    assert len(together) == 5
