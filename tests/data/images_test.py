import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import images


@pytest.fixture
def image():
    """Smooth colours with some grain, wider than high."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :180]
    smooth = np.stack([x, y, 255 - x], -1)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image, mode="RGB", format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def reference(image, size):
    """Shorter side resized, then centre crop, by Pillow."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    scaled = Image.fromarray(image)
    scaled = scaled.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("turned", [False, True])
def test_decode_resizes_and_crops_as_pillow_does(image, turned):
    image = image.swapaxes(0, 1) if turned else image
    found = images.decode(encoded(image), 40)
    np.testing.assert_array_equal(found, reference(image, 40))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG"])
def test_decode_keeps_the_pixels_of_an_image_that_fits(image, format):
    data = encoded(image[:96, :96], format=format)
    np.testing.assert_array_equal(images.decode(data, 96), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("mode", "format"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("CMYK", "TIFF")],
)
def test_decode_turns_any_mode_into_rgb(image, mode, format):
    expected = Image.fromarray(image[:96, :96]).convert(mode).convert("RGB")
    found = images.decode(encoded(image[:96, :96], mode, format), 96)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_decode_drops_a_palette_s_transparency(image):
    data = encoded(image[:96, :96], "P", transparency=bytes(range(256)))
    expected = images.decode(encoded(image[:96, :96], "P"), 96)
    np.testing.assert_array_equal(images.decode(data, 96), expected)


def test_decode_keeps_the_upper_bits_of_16_bit_greys():
    grey = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    expected = np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), 96), expected)


def test_decode_leaves_exif_orientation_alone(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    plain, turned = encoded(image), encoded(image, exif=exif)
    np.testing.assert_array_equal(images.decode(turned, 96), images.decode(plain, 96))


def png_claiming(width, height):
    """A PNG of a few bytes that claims to be `width` x `height`."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:12], "unknown image format"),
        (lambda data: b"", "unknown image format"),
        (lambda data: b"name,group\n", "unknown image format"),
        (lambda data: data[:500] + bytes(200) + data[700:], "data stream"),
        (lambda data: png_claiming(9000, 9000), "9000x9000 pixels, expected at most"),
        (lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown image format"),
    ],
    ids=["truncated", "header only", "empty", "text", "overwritten", "bomb", "postscript"],
)
def test_decode_says_what_is_wrong_with_damaged_bytes(image, damage, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(damage(encoded(image)), 96)


def test_decode_refuses_greys_without_a_known_range():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((96, 96), np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="not integers"):
        images.decode(buffer.getvalue(), 96)


def test_resize_equals_decode(image):
    found = images.resize(np.stack([image, image[::-1]]), 64)
    np.testing.assert_array_equal(found[0], images.decode(encoded(image), 64))
    np.testing.assert_array_equal(found[1], images.decode(encoded(image[::-1]), 64))


def test_resize_does_not_copy_what_fits(image):
    batch = image[None, :96, :96]
    assert images.resize(batch, 96) is batch


def test_encode_png_is_lossless(image):
    found = np.asarray(Image.open(io.BytesIO(images.encode_png(image))))
    np.testing.assert_array_equal(found, image)


def test_discs_lie_over_one_another():
    found = images.draw_discs(20, 30, [(10, 8, 4, 130), (10, 8, 2, 100), (29, 19, 3, 7)])
    assert found.shape == (20, 30)
    assert (found[8, 6], found[8, 10], found[8, 13], found[8, 15]) == (130, 100, 130, 0)
    assert found[19, 29] == 7  # cut off at the edge


def test_shrinking_and_enlarging_keeps_size_and_mean():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    for method in ("box", "bicubic"):
        found = images.shrink_and_enlarge(image, 0.5, method)
        assert found.shape == image.shape
        assert abs(found.mean() - image.mean()) < 1
        assert found.std() < image.std()
    assert images.shrink_and_enlarge(image, 0.001, "box").std(axis=(0, 1)).max() == 0


def test_a_lower_quality_loses_more():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    for file_format in ("JPEG", "WEBP"):
        fine, coarse = (
            np.abs(images.reencode(image, file_format, quality) - image.astype(int)).mean()
            for quality in (90, 5)
        )
        assert 0 < fine < coarse
