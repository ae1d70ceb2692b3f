import numpy as np

from bloodjax.attribution import curves


def _image():
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 2:6] = 200
    return image


def test_deletion_starts_with_the_image_and_ends_with_its_blurred_copy():
    image = _image()
    attribution = np.arange(64, dtype=np.float32).reshape(8, 8)
    found = curves.deletion(image, attribution, 5)
    assert found.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[-1], curves.blurred(image))
    # After a quarter the last two rows, which have the highest attribution, are replaced.
    np.testing.assert_array_equal(found[1, :6], image[:6])
    np.testing.assert_array_equal(found[1, 6:], curves.blurred(image)[6:])


def test_insertion_is_deletion_backwards_for_the_negative_map():
    image = _image()
    attribution = np.random.default_rng(0).permutation(64).reshape(8, 8).astype(np.float32)
    inserted = curves.insertion(image, attribution, 9)
    np.testing.assert_array_equal(inserted, curves.deletion(image, -attribution, 9)[::-1])


def test_area_of_a_line_and_a_constant():
    probabilities = np.stack([np.linspace(0, 1, 7), np.full(7, 0.25)])
    np.testing.assert_allclose(curves.area(probabilities), [0.5, 0.25])
