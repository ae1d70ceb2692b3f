import io
import struct

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import images, options
from bloodjax.data.facts import Tally
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

from .image_encodings import encoded, png, png16, saved


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


@pytest.mark.parametrize(
    ("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")]
)
def test_colours_under_full_transparency_do_not_show(image, mode, format):
    def hidden(colour):
        picture = Image.fromarray(image[:96, :96]).convert(mode)
        picture.paste(colour, (10, 20, 50, 60))
        buffer = io.BytesIO()
        settings = {"lossless": True, "exact": True} if format == "WEBP" else {}
        picture.save(buffer, format, **settings)
        return buffer.getvalue()

    bright, dark = ((255, 0), (0, 0)) if mode == "LA" else ((255, 9, 9, 0), (0, 0, 99, 0))
    found, facts = images.read(hidden(bright), 96)
    assert facts.transparent
    np.testing.assert_array_equal(found, images.read(hidden(dark), 96)[0])
    np.testing.assert_array_equal(found[20:60, 10:50], 255)
    opaque, facts = images.read(encoded(image[:96, :96], mode, "PNG"), 96)
    assert not facts.transparent
    np.testing.assert_array_equal(found[60:], opaque[60:])


def test_a_palette_and_a_colour_may_be_transparent(image):
    data = encoded(image[:96, :96], "P", transparency=bytes(range(256)))
    assert images.read(data, 96)[1].transparent
    flat = np.full((96, 96, 3), (7, 8, 9), np.uint8)
    flat[:48] = 100
    found, facts = images.read(encoded(flat, transparency=(7, 8, 9)), 96)
    assert facts.transparent
    assert (found[0, 0].tolist(), found[-1, -1].tolist()) == ([100] * 3, [255] * 3)


def turned(image, orientation):
    """What a viewer shows of `image` with this EXIF orientation, by its definition."""
    flipped = image[:, ::-1] if orientation in (2, 4, 5, 7) else image
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}
    return np.ascontiguousarray(np.rot90(flipped, turns[orientation]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_a_viewer_shows_it(image, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if format == "WEBP" else {}
    found, facts = images.read(encoded(image, format=format, exif=exif, **settings), 40)
    assert facts.oriented == (orientation > 1)
    np.testing.assert_array_equal(found, reference(turned(image, orientation), 40))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_an_image_of_12_bits_is_turned_too(image, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(buffer, format, exif=exif)
    expected = turned(np.repeat(image[..., :1], 3, axis=-1), orientation)
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), 40), reference(expected, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing(image):
    plain = encoded(image, format="JPEG")
    segment = b"Exif\0\0II*\0\xff\xff\xff\xff"
    size = struct.pack(">H", len(segment) + 2)
    damaged = plain[:2] + b"\xff\xe1" + size + segment + plain[2:]
    np.testing.assert_array_equal(images.decode(damaged, 40), images.decode(plain, 40))


@pytest.mark.parametrize("encode", [lambda rgba: png16(rgba, 6), lambda rgba: saved(rgba, "PNG")])
def test_an_image_of_transparent_pixels_only_is_unreadable(encode):
    with pytest.raises(ValueError, match="all of its pixels are transparent"):
        images.decode(encode(np.full((9, 9, 4), (90, 9, 9, 0), np.uint8)), 9)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_taken_and_noted(image, format):
    frames = [Image.fromarray(image[:96, :96]), Image.new("RGB", (96, 96), "red")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    found, facts = images.read(buffer.getvalue(), 96)
    assert facts.frames
    assert found.std() > 5
    assert not images.read(encoded(image, format=format), 96)[1].frames


def test_how_an_image_becomes_a_square():
    wide = np.full((48, 96, 3), (200, 190, 180), np.uint8)
    wide[20:28, 90:] = 20  # at the edge, where the central square does not reach
    data = encoded(wide)
    assert images.read(data, 48)[1].elongated
    crop, pad, squash = (images.decode(data, 48, ReadOptions(fit=fit)) for fit in options.FITS)
    assert crop.min() > 100
    np.testing.assert_array_equal(squash, np.asarray(Image.fromarray(wide).resize((48, 48), 3)))
    small = np.asarray(Image.fromarray(wide).resize((48, 24), 3))
    np.testing.assert_array_equal(pad[12:36], small)
    np.testing.assert_array_equal(pad[[0, 11, 36, 47]] - wide[0, 0], 0)
    for fit, expected in zip(options.FITS, (crop, pad, squash), strict=True):
        np.testing.assert_array_equal(images.resize(wide[None], 48, fit)[0], expected)
    assert not images.read(encoded(wide[:, :57]), 48)[1].elongated


def test_a_frame_of_pixels_shows_cells_of_one_magnification_in_proportion():
    large, small = (np.full((side, side - 1, 3), 200, np.uint8) for side in (80, 41))
    for image in (large, small):
        height, width = image.shape[:2]
        image[height // 2 - 6 : height // 2 + 6, width // 2 - 6 : width // 2 + 6] = 20
    shown = [images.decode(encoded(image), 30, ReadOptions(fit="60px")) for image in (large, small)]
    for square in shown:
        np.testing.assert_array_equal(square[[0, -1]], 200)
        assert abs((square[..., 0] < 110).sum() - 36) <= 6
    framed = np.full((60, 60, 3), 200, np.uint8)
    framed[9:50, 10:50] = small
    expected = np.asarray(Image.fromarray(framed).resize((30, 30), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown[1], expected)
    np.testing.assert_array_equal(images.resize(small[None], 30, "60px")[0], expected)
    with pytest.raises(UserError, match="fit is '0px', expected crop, pad, squash, or a number"):
        ReadOptions(fit="0px")


def png_claiming(width, height):
    """A PNG of a few bytes that claims to be `width` x `height`."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"")


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


def test_a_file_of_another_type_is_not_an_image():
    with pytest.raises(images.NotAnImageError):
        images.decode(b"name,group\n", 96)


@pytest.mark.parametrize("bits", ["12", "auto"])
def test_a_file_of_16_bits_is_packed_with_8(image, bits):
    data = png16(image[:96, :96].astype(np.uint16) * 16, 2)
    packed = images.as_png_or_jpeg(data, bits)
    np.testing.assert_array_equal(images.decode(packed, 96), images.decode(data, 96))
    plain = encoded(image)
    assert images.as_png_or_jpeg(plain) is plain


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


def test_an_image_at_its_own_size(image):
    pixels, tally = images.decode_whole(encoded(image))
    np.testing.assert_array_equal(pixels, image)
    assert tally == Tally(elongated=1)
    height, width = image.shape[:2]
    with pytest.raises(ValueError, match=f"{width}x{height} pixels, expected at most 100$"):
        images.decode_whole(encoded(image), max_pixels=100)


def test_an_image_of_12_bits_at_its_own_size():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels, tally = images.decode_whole(saved(values, "PNG"))
    assert (tally.deep, tally.largest, tally.scale) == (1, 4095, "12")
    np.testing.assert_array_equal(pixels, np.repeat((values >> 4)[..., None], 3, axis=-1))


def test_shrinking_keeps_the_proportions(image):
    wide = np.concatenate([image, image, image], axis=1)
    height, width = wide.shape[:2]
    assert images.shrink(wide, width) is wide
    values = wide[..., 0].astype(np.float32) / 255  # a map
    assert images.shrink(values, 30).shape == images.shrink(wide, 30).shape[:2]
    small = images.shrink(wide, 30)
    assert small.shape == (round(height * 30 / width), 30, 3)
