import io

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import arrays, images
from bloodjax.data.lazy import LazyImages


@pytest.fixture
def cells():
    return np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)


def as_list(found):
    return [image.tolist() for image in found]


CLEAR = {
    "rgb": (lambda x: x, lambda x: x),
    "a list": (lambda x: list(x), lambda x: x),
    "several sizes": (lambda x: (x[0], x[1][:8]), lambda x: [x[0], x[1][:8]]),
    "one": (lambda x: x[0], lambda x: x[:1]),
    "grey": (lambda x: x[..., 0], lambda x: x[..., [0, 0, 0]]),
    "grey with a channel": (lambda x: x[..., :1], lambda x: x[..., [0, 0, 0]]),
    "one grey": (lambda x: x[0, ..., 0], lambda x: x[:1, ..., [0, 0, 0]]),
    "one grey with a channel": (lambda x: x[0, ..., :1], lambda x: x[:1, ..., [0, 0, 0]]),
    "a list of greys": (lambda x: [x[0, ..., 0], x[1]], lambda x: [x[0][..., [0, 0, 0]], x[1]]),
    "one of Pillow": (lambda x: Image.fromarray(x[0]), lambda x: x[:1]),
    "a palette": (
        lambda x: [Image.fromarray(x[0]).convert("P", palette=Image.Palette.WEB)],
        lambda x: [np.asarray(Image.fromarray(x[0]).convert("P").convert("RGB"))],
    ),
    "none": (lambda x: x[:0], lambda x: []),
    "an empty list": (lambda x: [], lambda x: []),
    "empty floats": (lambda x: np.zeros(0), lambda x: []),
}


@pytest.mark.parametrize(("given", "expected"), CLEAR.values(), ids=CLEAR.keys())
def test_what_is_clear_is_taken(cells, given, expected):
    assert as_list(arrays.as_rgb(given(cells))) == as_list(expected(cells))
    assert arrays.resize(given(cells), 9, "crop").shape == (len(expected(cells)), 9, 9, 3)


def test_an_image_of_pillow_is_turned_as_its_file_is(cells, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cells[0]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        found, read = (
            arrays.as_rgb(image),
            images.decode((tmp_path / "turned.png").read_bytes(), 20),
        )
    np.testing.assert_array_equal(found[0], read)
    np.testing.assert_array_equal(found[0], np.rot90(cells[0], -1))


def test_transparent_pixels_are_white_as_in_files(cells):
    alpha = np.full((5, 20, 20, 1), 255, np.uint8)
    rgba = np.concatenate([cells, alpha], -1)
    np.testing.assert_array_equal(arrays.as_rgb(rgba), cells)
    rgba[:, :9, :, 3] = 0
    found = arrays.as_rgb(rgba)
    np.testing.assert_array_equal(found[:, :9], 255)
    np.testing.assert_array_equal(found[:, 9:], cells[:, 9:])
    np.testing.assert_array_equal(found[0], images.decode(png(rgba[0]), 20))


def png(rgba):
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()


UNCLEAR = {
    "floats of 0..1": (
        lambda x: x / 255,
        r"images are float64 \[5, 20, 20, 3\] with .*0\.\.1, exp",
    ),
    "floats of 0..255": (
        lambda x: x.astype(np.float32),
        r"images are float32 .*0\.\.255, expected",
    ),
    "uint16": (lambda x: x.astype(np.uint16) * 257, r"images are uint16 .*expected uint8 \[n, hei"),
    "int64": (lambda x: x.astype(np.int64), "images are int64 .* with values of 0..255, expected"),
    "bool": (lambda x: x > 128, r"images are bool \[5, 20, 20, 3\], expected uint8"),
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), r"\[5, 3, 20, 20\] .*the channels come"),
    "one, channels first": (lambda x: x[0].transpose(2, 0, 1), "3 grey images, or one with the"),
    "four greys": (lambda x: x[:4, ..., 0], r"4 grey images, or one .* expected \[n, height, wid"),
    "five axes": (lambda x: x[None], r"\[1, 5, 20, 20, 3\] .*: not \[n, height, width, channels\]"),
    "two channels": (lambda x: x[..., :2], r"\[5, 20, 20, 2\] .*: not \[n, height"),
    "a row": (lambda x: x[0, 0, 0], r"images are uint8 \[3\] .*expected uint8"),
    "no pixels": (lambda x: x[:, :0], r"\[5, 0, 20, 3\], expected at least one pixel"),
    "a list of floats": (lambda x: [x[0], x[1] / 255], r"images\[1\] is float64 \[20, 20, 3\]"),
    "a list of batches": (
        lambda x: [x, x],
        r"images\[0\] is uint8 \[5, 20, 20, 3\].*, expected uint8",
    ),
    "a list, channels first": (lambda x: [x[0].T], r"images\[0\] is uint8 \[3, 20, 20\]"),
    "paths": (lambda x: ["a.png"], r"images\[0\] is <U5 \[\], expected uint8"),
    "16 bits of Pillow": (
        lambda x: Image.fromarray(x[0, ..., 0].astype(np.uint16)),
        r"images are uint16 \[20, 20, 1\] .*expected uint8",
    ),
    "a damaged file of Pillow": (
        lambda x: [x[0], Image.open(io.BytesIO(png(x[0])[:500]))],
        r"images\[1\] is not readable \(image file is truncated",
    ),
    "a clear one of Pillow": (
        lambda x: [x[0], Image.new("RGBA", (4, 4))],
        r"images\[1\] is not readable \(all of its pixels are transparent\)",
    ),
    "a clear one": (
        lambda x: [x[0], np.zeros((4, 4, 4), np.uint8)],
        r"images\[1\] is not readable \(all of its pixels are transparent\)",
    ),
    "nothing": (lambda x: None, r"images are object \[\], expected uint8"),
}


@pytest.mark.parametrize(("given", "message"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_the_rest_is_refused_with_what_was_found_and_expected(cells, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        arrays.as_rgb(given(cells))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_other_proportions_fit_as_those_of_files(cells, fit):
    wide = cells[:, :12]
    for given in (wide, list(wide)):
        np.testing.assert_array_equal(arrays.resize(given, 16, fit), images.resize(wide, 16, fit))


def test_lazy_images_stay_lazy(cells):
    lazy = LazyImages(lambda indices: cells[indices], np.arange(5), 20)
    assert isinstance(arrays.resize(lazy, 9, "pad"), LazyImages)


def test_squares_of_one_size_become_squares_of_another(cells):
    side = cells.shape[1]
    smaller = images.resize(cells, 9)
    np.testing.assert_array_equal(arrays.resize_squares(cells, side, 9), smaller)
    wide = np.zeros((2, 20, 30, 3), np.uint8)
    assert arrays.resize_squares(wide, side, 9) is wide
    first, second = arrays.resize_squares([cells[0], wide[0]], side, 9)
    np.testing.assert_array_equal(first, smaller[0])
    assert second.shape == wide[0].shape
    lazy = LazyImages(lambda index: cells[index], np.arange(len(cells)), side)
    assert arrays.resize_squares(lazy, side, 9).shape == smaller.shape
    with pytest.raises(ValueError, match="expected uint8"):
        arrays.resize_squares(cells / 255, side, 9)
