import random

import jax
import numpy as np
import pytest
from scipy import stats

from bloodjax.augment.erase import cutout_box, erase, grid_mask, random_box

SIZE = (37, 41)
RED = np.array([200.0, 0.0, 10.0], np.float32)


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 255, (*SIZE, 3)).round().astype(np.float32)


def boxes(sample, n=3000):
    """[n, 4]: boxes from n keys, all within the image."""
    found = np.asarray(jax.vmap(sample)(jax.random.split(jax.random.key(0), n)))
    assert found.dtype == np.int32
    assert np.all(found >= 0)
    assert np.all(found[:, :2] + found[:, 2:] <= SIZE)
    return found


@pytest.mark.parametrize("box", [(0, 0, 5, 41), (30, 3, 7, 1), (36, 40, 1, 1), (4, 4, 0, 9)])
def test_erase_fills_the_box_and_nothing_else(run, image, box):
    top, left, height, width = box
    other = np.random.default_rng(1).uniform(0, 255, image.shape).astype(np.float32)
    for fill in (RED, other):
        expected = image.copy()
        inside = np.s_[top : top + height, left : left + width]
        expected[inside] = np.broadcast_to(fill, image.shape)[inside]
        np.testing.assert_array_equal(run(erase, image, np.array(box), fill), expected)


def test_random_boxes_are_distributed_as_timm_s(timm):
    torch = pytest.importorskip("torch")
    from timm.data.random_erasing import RandomErasing

    sampled = boxes(lambda key: random_box(key, SIZE, (0.02, 1 / 3), (0.3, 1 / 0.3)))
    random.seed(0)
    reference = RandomErasing(probability=1.0, mode="const", device="cpu")
    expected = []
    for _ in range(3000):
        hidden = reference(torch.ones(1, *SIZE))[0].numpy() == 0
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        expected.append((rows[0], columns[0], len(rows), len(columns)))
    for found, reference_found in zip(sampled.T, np.array(expected).T, strict=True):
        assert stats.ks_2samp(found, reference_found).pvalue > 1e-3


def test_random_boxes_have_the_area_and_aspect_asked_for(torchvision):
    import torch
    from torchvision.transforms import RandomErasing

    area, aspect = (0.1, 0.2), (0.5, 2.0)
    sampled = boxes(lambda key: random_box(key, SIZE, area, aspect))
    share = sampled[:, 2] * sampled[:, 3] / np.prod(SIZE)
    # Sides are rounded to pixels: an error of up to half a pixel in at least 8.
    assert share.min() > 0.1 * 0.87
    assert share.max() < 0.2 * 1.13
    assert (sampled[:, 2] / sampled[:, 3]).min() > 0.5 * 0.87
    assert (sampled[:, 2] / sampled[:, 3]).max() < 2.0 * 1.13
    torch.manual_seed(0)
    image = torch.ones(1, *SIZE)
    expected = [RandomErasing.get_params(image, area, aspect, [0.0])[:4] for _ in range(3000)]
    for found, reference in zip(sampled.T, np.array(expected).T, strict=True):
        assert stats.ks_2samp(found, reference).pvalue > 1e-3


def test_a_box_that_cannot_fit_is_empty(run, image):
    box = random_box(jax.random.key(0), SIZE, (0.9, 0.9), (5.0, 5.0))
    assert box[2:].tolist() == [0, 0]
    np.testing.assert_array_equal(run(erase, image, box, RED), image)


def test_cutout_is_a_square_about_any_pixel(run, image):
    keys = jax.random.split(jax.random.key(1), 500)
    sampled = np.asarray(jax.vmap(lambda key: cutout_box(key, SIZE, 10.0))(keys))
    np.testing.assert_array_equal(sampled[:, 2:], 10)
    centres = sampled[:, :2] + 5
    assert centres.min(axis=0).tolist() == [0, 0]
    assert centres.max(axis=0).tolist() == [36, 40]
    for pixel, size in zip(centres.T, SIZE, strict=True):
        assert stats.kstest(pixel, stats.randint(0, size).cdf).pvalue > 1e-3
    for box in ((-5.0, 36.0, 10.0, 10.0), (32.0, -4.0, 10.0, 10.0)):
        hidden = np.any(run(erase, image * 0, np.array(box, np.float32), RED) > 0, axis=-1)
        y, x = (int(centre) + 5 for centre in box[:2])
        expected = np.zeros(SIZE, bool)
        expected[max(y - 5, 0) : y + 5, max(x - 5, 0) : x + 5] = True
        np.testing.assert_array_equal(hidden, expected)


@pytest.mark.parametrize(("period", "ratio", "offset"), [(8, 0.5, (0, 0)), (10, 0.3, (4, 7))])
def test_grid_mask_hides_a_square_in_each_period(run, image, period, ratio, offset):
    hidden = np.zeros(SIZE, bool)
    side = round(period * ratio)
    for top in range(offset[0] - period, SIZE[0], period):
        for left in range(offset[1] - period, SIZE[1], period):
            rows = slice(max(top, 0), max(top + side, 0))
            hidden[rows, max(left, 0) : max(left + side, 0)] = True
    arguments = (image, float(period), ratio, np.array(offset, np.float32))
    for more, expected in (((), np.zeros(3)), ((0.0, RED), RED)):
        found = run(grid_mask, *arguments, *more)
        np.testing.assert_array_equal(found, np.where(hidden[..., None], expected, image))


def test_grid_mask_turns_anticlockwise_about_the_centre(run):
    white = np.full((40, 40, 3), 255.0, np.float32)
    offset = np.array(
        [3.4, 6.6], np.float32
    )  # No pixel's centre is on an edge, where rounding would decide.
    upright = run(grid_mask, white, 9.0, 0.6, offset)
    turned = run(grid_mask, white, 9.0, 0.6, offset, 90.0)
    np.testing.assert_array_equal(turned, np.rot90(upright))
    oblique = run(grid_mask, white, 9.0, 0.6, offset, 35.0)
    assert (oblique == 0).mean() == pytest.approx(0.6**2, abs=0.03)
    assert np.any(oblique != upright)


def test_no_strength_leaves_the_image_unchanged(run, image):
    for angle in np.linspace(0, 180, 20):
        same = run(grid_mask, image, 7.3, 0.0, np.zeros(2, np.float32), angle)
        np.testing.assert_array_equal(same, image)


@pytest.mark.full
def test_vmap_and_map_agree_with_one_image_at_a_time(agree, image):
    rng = np.random.default_rng(2)
    boxes = np.array([[0, 0, 0, 0], [3, 9, 20, 8], [30, -2, 10, 99]], np.float32)
    for fill in (rng.uniform(0, 255, (3, 3)), rng.uniform(0, 255, (3, *image.shape))):
        agree(erase, image, boxes, fill.astype(np.float32))
    period, angle = np.array([12.1, 5.3, 20.9]), np.array([0.0, 30.0, 80.0])
    ratio, offset = np.array([0.0, 0.4, 0.9]), rng.uniform(0, 12, (3, 2))
    agree(grid_mask, image, *(np.float32(a) for a in (period, ratio, offset, angle)))
