import pytest

from bloodjax.data import image_types

from .image_encodings import encoded


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000"])
def test_images_are_known_by_content(image, format):
    assert image_types.is_image(encoded(image, format=format), "p8")
    assert image_types.is_image(b"<!doctype html>", "page.JPG")
    assert not image_types.is_image(b"name,group\n", "groups.csv")
    assert image_types.is_tiff(encoded(image, format=format)) == (format == "TIFF")
    assert image_types.is_jpeg(encoded(image, format=format)) == (format == "JPEG")
