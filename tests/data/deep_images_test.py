"""Tests of bloodjax/data/deep_images.py, as `images` calls it."""

import io

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import images
from bloodjax.data.options import ReadOptions

from .image_encodings import png16, ppm, saved, tiff16


def test_decode_keeps_the_upper_bits_of_16_bit_greys():
    grey = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    expected = np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), 96), expected)


OPAQUE = np.full((96, 96, 1), 65535, np.uint16)
DEEP = {
    "png grey": (lambda v: png16(v[..., :1], 0), 1),
    "png grey and alpha": (lambda v: png16(np.concatenate([v[..., :1], OPAQUE], -1), 4), 1),
    "png rgb": (lambda v: png16(v, 2), 3),
    "png rgba": (lambda v: png16(np.concatenate([v, OPAQUE], -1), 6), 3),
    "tiff rgb": (tiff16, 3),
    "tiff rgb big endian": (lambda v: tiff16(v, ">"), 3),
    "tiff grey": (lambda v: saved(v[..., 0], "TIFF"), 1),
    "tiff grey compressed": (lambda v: saved(v[..., 0], "TIFF", compression="tiff_lzw"), 1),
    "tiff 32 bits": (lambda v: saved(v[..., 0].astype(np.int32), "TIFF"), 1),
    "tiff float": (lambda v: saved(v[..., 0].astype(np.float32), "TIFF"), 1),
    "ppm": (lambda v: ppm(v, 65535), 3),
    "pgm": (lambda v: ppm(v[..., 0], 4095), 1),
    "jpeg 2000": (lambda v: saved(v[..., 0], "JPEG2000"), 1),
}


@pytest.mark.parametrize(("encode", "channels"), DEEP.values(), ids=DEEP.keys())
def test_12_bits_keep_their_upper_8(image, encode, channels):
    expected = image[:96, :96].copy()
    expected[0, 0] = 255  # the 12 bits are used
    low = np.random.default_rng(1).integers(0, 16, expected.shape)
    data = encode(expected.astype(np.uint16) * 16 + low.astype(np.uint16))
    expected = expected if channels == 3 else np.repeat(expected[..., :1], 3, axis=-1)
    pixels, facts = images.read(data, 96)
    assert pixels is None  # the scale is that of a whole source
    assert 4080 <= facts.values.largest < 4096
    np.testing.assert_array_equal(images.decode(data, 96), expected)
    np.testing.assert_array_equal(images.read(data, 96, ReadOptions(bits="12"))[0], expected)
    np.testing.assert_array_equal(images.read(data, 96, ReadOptions(bits="16"))[0], expected // 16)
    with pytest.raises(ValueError, match=r"of at most 40\d\d, expected values of 10 bits"):
        images.read(data, 96, ReadOptions(bits="10"))


def test_transparency_of_16_bits(image):
    alpha = OPAQUE.copy()
    alpha[:48] = 0
    colours = np.concatenate([image[:96, :96].astype(np.uint16) * 257, alpha], -1)
    for data in (png16(colours, 6), png16(colours[..., 2:], 4)):
        found, facts = images.read(data, 96, ReadOptions(bits="16"))
        assert facts.transparent
        np.testing.assert_array_equal(found[:48], 255)
        np.testing.assert_array_equal(found[48:, :, 2], image[48:96, :96, 2])


def test_hidden_values_do_not_decide_the_scale(image):
    colours = np.concatenate([image[:96, :96].astype(np.uint16) * 16, OPAQUE], -1)
    colours[0] = (65535, 65535, 65535, 0)
    found, facts = images.read(png16(colours, 6), 96, ReadOptions(bits="12"))
    assert facts.values.largest <= 4080
    np.testing.assert_array_equal(found[1:], image[1:96, :96])


def big_endian(values):
    tifffile = pytest.importorskip("tifffile", reason="needs the extra [parity]")
    file = io.BytesIO()
    tifffile.imwrite(file, values, byteorder=">", compression="zlib")
    return file.getvalue()


def test_compressed_values_in_big_endian(image):
    values = image[:96, :96, 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(images.decode(big_endian(values), 96)[..., 0], image[:96, :96, 0])


def test_floats_of_0_to_1(image):
    grey = image[:96, :96, 0]
    data = saved((grey / 255).astype(np.float32), "TIFF")
    np.testing.assert_array_equal(images.decode(data, 96)[..., 1], grey)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda v: tiff16(v[..., 0], photometric=0), "in which 0 is white"),
        (lambda v: saved(v[..., 0] / np.float32(-9), "TIFF"), "values of -.*, expected integers"),
        (lambda v: saved(v[..., 0] + np.float32("nan"), "TIFF"), "values that are not finite"),
        (lambda v: big_endian(v[..., 0] / np.float32(70000)), "in big endian, expected little"),
        (lambda v: big_endian(v[..., 0].astype(np.int16)), "in big endian, expected little"),
        (lambda v: saved(v[..., 0] / np.float32(9000), "TIFF"), "floats of at most 0.01"),
        (
            lambda v: saved(v[..., 0].astype(np.int32) * 999, "TIFF"),
            "expected integers of 0..65535",
        ),
        (lambda v: tiff16(np.concatenate([v, v[..., :2]], -1)), "damaged TIFF, or one of a kind"),
    ],
)
def test_values_without_a_clear_scale_are_refused(image, data, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(data(image[:96, :96].astype(np.uint16)), 96)
