import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import images, options
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError


@pytest.fixture
def image():
    """Smooth colours with some grain, wider than high."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :180]
    smooth = np.stack([x, y, 255 - x], -1)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image, mode="RGB", format="PNG", **settings):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format, **settings)
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


def test_decode_keeps_the_upper_bits_of_16_bit_greys():
    grey = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    expected = np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), 96), expected)


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


def png16(values, colour_type):
    """A PNG file of 16 bits."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return png(header, zlib.compress(rows))


def tiff16(values, order="<", photometric=2):
    """An uncompressed TIFF file of 16 bits; photometric 0 is white as 0, 1 grey and 2 RGB."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric)]
    tags += [(273, 0), (277, channels), (278, height), (279, len(data)), (284, 1)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in tags:
        if tag == 258 and channels > 1:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, start)
        else:
            value = start + 2 * channels if tag == 273 else value
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack(f"{order}{channels}H", *[16] * channels) + data


def ppm(values, limit):
    height, width = values.shape[:2]
    kind = 6 if values.ndim == 3 else 5
    return (
        f"P{kind}\n# a comment\n{width} {height}\n{limit}\n".encode()
        + values.astype(">u2").tobytes()
    )


def saved(values, format, **settings):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **settings)
    return buffer.getvalue()


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


@pytest.mark.parametrize("encode", [lambda rgba: png16(rgba, 6), lambda rgba: saved(rgba, "PNG")])
def test_an_image_of_transparent_pixels_only_is_unreadable(encode):
    with pytest.raises(ValueError, match="all of its pixels are transparent"):
        images.decode(encode(np.full((9, 9, 4), (90, 9, 9, 0), np.uint8)), 9)


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


def png(header, body):
    """A PNG file of these contents of IHDR and IDAT."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    ends = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000"])
def test_images_are_known_by_content(image, format):
    assert images.is_image(encoded(image, format=format), "p8")
    assert images.is_image(b"<!doctype html>", "page.JPG")
    assert not images.is_image(b"name,group\n", "groups.csv")
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
    pixels, facts = images.decode_whole(encoded(image))
    np.testing.assert_array_equal(pixels, image)
    assert facts == images.PLAIN._replace(elongated=True)
    height, width = image.shape[:2]
    with pytest.raises(ValueError, match=f"{width}x{height} pixels, expected at most 100$"):
        images.decode_whole(encoded(image), max_pixels=100)


def test_an_image_of_12_bits_at_its_own_size():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels, facts = images.decode_whole(saved(values, "PNG"))
    assert facts.values.largest == 4095
    np.testing.assert_array_equal(pixels, np.repeat((values >> 4)[..., None], 3, axis=-1))


def test_shrinking_keeps_the_proportions(image):
    wide = np.concatenate([image, image, image], axis=1)
    height, width = wide.shape[:2]
    assert images.shrink(wide, width) is wide
    small = images.shrink(wide, 30)
    assert small.shape == (round(height * 30 / width), 30, 3)
