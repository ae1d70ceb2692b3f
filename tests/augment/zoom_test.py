import numpy as np
import pytest
from scipy import ndimage

from bloodjax.augment import zoom

SIZE = 32


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_zoom_is_linear_interpolation_about_the_middle(factor):
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    spot = np.exp(-((rows - 18) ** 2 + (columns - 14) ** 2) / (2 * 3.0**2))
    image = np.repeat((200 * spot)[..., None], 3, -1).astype(np.uint8)
    found = np.asarray(zoom.zoom(image[None], factor))[0, ..., 0].astype(float)
    middle = SIZE / 2
    assert abs((found * rows).sum() / found.sum() - (middle + factor * (18 - middle))) < 0.15
    assert abs((found * columns).sum() / found.sum() - (middle + factor * (14 - middle))) < 0.15
    if factor > 1:
        offset = middle - 0.5 - (middle - 0.5) / factor
        expected = ndimage.affine_transform(
            image[..., 0].astype(float), [1 / factor] * 2, offset, order=1, mode="reflect"
        )
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_weights_of_a_zoom_sum_to_one_and_reflect():
    matrix = zoom.weights(8, 0.25)
    np.testing.assert_array_equal(matrix.sum(axis=1), 1)
    np.testing.assert_array_equal(4096 * matrix, np.rint(4096 * matrix))
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)
    np.testing.assert_array_equal(zoom.weights(8, 1.0), np.eye(8, dtype=np.float32))
