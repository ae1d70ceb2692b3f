import numpy as np
import pytest

from bloodjax.data.synthetic import cells
from bloodjax.data.synthetic.morphology import KINDS

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 40)).astype(np.int32)


@pytest.fixture(scope="module")
def images():
    return cells.render_cells(LABELS, 64, seed=2)


def test_threads_do_not_change_a_bit():
    few = LABELS[:64]
    alone = cells.render_cells(few, 96, seed=1, workers=1)
    np.testing.assert_array_equal(alone, cells.render_cells(few, 96, seed=1, workers=5))


def test_every_kind_has_its_own_share_of_stained_pixels(images):
    """Nuclei are the darkest thing on a film: large in lymphocytes, none in platelets."""
    middle = images[:, 12:52, 12:52].astype(float)
    glass = np.percentile(images.astype(float), 90, axis=(1, 2))
    dark = (middle[..., 1] < 0.5 * glass[:, None, None, 1]).mean((1, 2))
    share = {kind: dark[i == LABELS].mean() for i, kind in enumerate(KINDS)}
    assert share["platelet"] < share["erythroblast"] < share["lymphocyte"]
    assert share["neutrophil"] < share["monocyte"]
    assert share["platelet"] < min(share[kind] for kind in KINDS if kind != "platelet")


def test_images_differ_in_light_stain_and_focus(images):
    means = images.astype(float).mean((1, 2))
    assert (means.std(0) > 5).all()
    sharpness = np.abs(np.diff(images.astype(float), axis=2)).mean((1, 2, 3))
    assert sharpness.max() > 2 * sharpness.min()


def test_masks_cover_the_white_cell():
    few = LABELS[:64]
    images, masks = cells.render_with_masks(few, 64, seed=1)
    np.testing.assert_array_equal(images, cells.render_cells(few, 64, seed=1))
    area = {kind: masks[few == i].mean() for i, kind in enumerate(KINDS)}
    for kind, share in area.items():
        # Radii are in units of half the image.
        low, high = (np.pi * radius**2 / 4 for radius in KINDS[kind].radius)
        assert 0.9 * low < share < 1.1 * high
    assert masks[:, 28:36, 28:36].mean() > 0.9
    green = images[..., 1].astype(float)
    inside = np.array([image[mask].mean() for image, mask in zip(green, masks, strict=True)])
    outside = np.array([image[~mask].mean() for image, mask in zip(green, masks, strict=True)])
    assert (inside < outside).all()
