import numpy as np
import pytest

from bloodjax.corruptions import unfamiliar
from bloodjax.data.synthetic import render

IMAGES = render.render_dataset(8, 32, seed=0).images


@pytest.mark.parametrize("kind", list(unfamiliar.KINDS))
def test_a_kind_gives_another_image_of_the_same_size_for_each(kind):
    before = IMAGES.copy()
    made = unfamiliar.make(kind, IMAGES, 3)
    assert made.shape == IMAGES.shape
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, unfamiliar.make(kind, IMAGES, 3))
    np.testing.assert_array_equal(IMAGES, before)
    difference = np.abs(made.astype(int) - IMAGES).mean(axis=(1, 2, 3))
    assert (difference > 2).all()
    assert len(np.unique(made.reshape(len(made), -1), axis=0)) > 1


@pytest.mark.parametrize("kind", list(unfamiliar.KINDS))
@pytest.mark.parametrize("size", [2, 3, 17])
def test_kinds_of_small_and_odd_images(kind, size):
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    assert unfamiliar.make(kind, images, 0).shape == images.shape
    assert unfamiliar.make(kind, images[:1], 0).shape == images[:1].shape


def test_what_the_kinds_keep_of_the_cell():
    shuffled = unfamiliar.make("shuffled patches", IMAGES, 0)
    for one, other in zip(IMAGES, shuffled, strict=True):
        np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(other.ravel()))
    np.testing.assert_array_equal(unfamiliar.make("negative", IMAGES, 0), 255 - IMAGES)
    blurred = unfamiliar.make("defocused", IMAGES, 0)
    assert (blurred.std(axis=(1, 2)) < IMAGES.std(axis=(1, 2))).all()
    turned = unfamiliar.make("other hue", np.full((1, 8, 8, 3), (200, 120, 160), np.uint8), 0)
    assert abs(float(turned.mean()) - 160) < 2  # the brightness stays
    assert np.abs(turned[0, 0, 0].astype(int) - (200, 120, 160)).max() > 10
    background = unfamiliar.make("empty field", IMAGES, 0)
    assert (background.mean(axis=(1, 2)) > IMAGES.mean(axis=(1, 2))).all()
