import numpy as np
import pytest

from bloodjax.attribution import geometry
from bloodjax.data import images

SIZE = 48


@pytest.mark.parametrize("fit", ["crop", "squash", "pad", "60px"])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 64), (60, 121), (24, 36), (49, 48)])
def test_a_spot_returns_to_its_place(fit, height, width):
    rows, columns = np.mgrid[:height, :width]
    x, y = width / 2 + 2, height / 2 - 3
    spot = np.exp(-((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2) / (2 * (height / 12) ** 2))
    image = np.repeat((255 * spot)[..., None], 3, -1).astype(np.uint8)
    square = images.resize(image[None], SIZE, fit)[0, ..., 0].astype(np.float32) / 255
    found = geometry.restore(square, height, width, fit)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, spot, atol=0.12)
    total = found.sum()
    assert abs((found * (columns + 0.5)).sum() / total - x) < 0.7
    assert abs((found * (rows + 0.5)).sum() / total - y) < 0.7


def test_cropped_borders_are_zero():
    found = geometry.restore(np.ones((SIZE, SIZE), np.float32), 60, 100, "crop")
    assert (found[:, :20] == 0).all()
    assert (found[:, 80:] == 0).all()
    np.testing.assert_allclose(found[:, 20:80], 1, rtol=1e-6)


def test_bars_of_padding_are_removed():
    square = np.zeros((SIZE, SIZE), np.float32)
    square[12:36] = 1  # an image of 50 x 100, between bars
    np.testing.assert_allclose(geometry.restore(square, 50, 100, "pad")[1:-1], 1, rtol=1e-6)
