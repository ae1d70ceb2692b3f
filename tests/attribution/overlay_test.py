import matplotlib
import numpy as np

from bloodjax.attribution import overlay


def test_colours_are_those_of_viridis():
    values = np.linspace(0, 1, 256, dtype=np.float32)
    expected = 255 * matplotlib.colormaps["viridis"](values)[:, :3]
    assert np.abs(overlay.colours(values) - expected).max() < 6


def test_an_image_is_unchanged_where_nothing_is_attributed():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    attribution = np.zeros((4, 6), np.float32)
    attribution[1, 2] = 1
    found = overlay.overlay(image, attribution)
    assert found.dtype == np.uint8
    same = (found == image).all(-1)
    assert same.sum() == 23
    assert not same[1, 2]
    yellow = overlay.colours(np.ones((), np.float32))
    assert np.abs(found[1, 2] - yellow).max() < np.abs(image[1, 2] - yellow).max()
