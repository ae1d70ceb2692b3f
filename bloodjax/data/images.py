"""Decodes, resizes and encodes images. The only module that imports Pillow."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from bloodjax.data import bit_depth, deep_files
from bloodjax.data.facts import BACKGROUND, MAX_ASPECT, PLAIN, Facts
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions, frame_side

# Formats that microscopes and archives use, in the order in which they are tried. Pillow's other
# readers are not used, because they are unsafe: the one for EPS starts Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "DIB")
# Suffixes of files that are meant to be images. Files are read by their content.
SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

# An image of one cell is far smaller. A file of a few bytes can claim to be far larger.
MAX_PIXELS = 64_000_000

PillowImage = Image.Image

# Whether Pillow resizes the rows of a tall image before its columns. Each pass rounds to integers,
# so the results differ.
ROWS_BEFORE_COLUMNS = int(PIL.__version__.partition(".")[0]) >= 13

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_KEYS = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 284, 338, 339
_ALWAYS_8_BITS = ("BMP", "DIB", "GIF", "JPEG", "MPO", "WEBP")
_STACKS = ("GIF", "PNG", "TIFF", "WEBP")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", *_TIFF_MAGIC),
    *(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),
)


class NotAnImageError(ValueError):
    """The content of a file is that of none of the `FORMATS`."""


def read(
    data: bytes, size: int, options: ReadOptions = DEFAULTS
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"] | None, Facts]:
    """Decodes an image and makes it a square of `size` pixels.

    The result is what a viewer shows: EXIF orientation is applied, and transparent pixels are laid
    over white. It is the first of several frames. Resizing uses antialiased bicubic interpolation;
    an image that already has the size keeps its exact pixels.

    Args:
      data: An encoded image in one of `FORMATS`.
      size: Height and width of the result in pixels.
      options: How to read it.

    Returns:
      uint8 RGB, or None if the scale of its values is "auto" and they have more than 8 bits; and
      what had to be decided.

    Raises:
      ValueError: `data` is not an image (`NotAnImageError`), is truncated, has more than
        `MAX_PIXELS` pixels, only transparent ones, or values that `options.bits` does not fit.
    """
    image, facts = _decode(data, options.bits)
    if image is None:
        return None, facts
    return np.asarray(_to_square(image, size, options.fit)), facts


def decode(
    data: bytes, size: int, options: ReadOptions = DEFAULTS
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The image that `read` returns; an "auto" scale is that of the image by itself.

    Raises:
      ValueError: As for `read`.
    """
    pixels, facts = read(data, size, options)
    if pixels is None:
        scale = bit_depth.choose([facts.values])
        pixels, _ = read(data, size, dataclasses.replace(options, bits=scale))
    return pixels


def decode_whole(
    data: bytes, bits: str = AUTO, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "height width 3"], Facts]:
    """The image that a viewer shows, at its own size, and what had to be decided.

    Args:
      data: An encoded image in one of `FORMATS`.
      bits: Scale of values of more than 8 bits, see `bit_depth`; "auto" is that of the image by
        itself.
      max_pixels: Most pixels that are decoded.

    Raises:
      ValueError: As for `read`.
    """
    image, facts = _decode(data, bits, max_pixels)
    if image is None:
        image, _ = _decode(data, bit_depth.choose([facts.values]), max_pixels)
    return np.asarray(image), facts


def is_image(data: bytes, name: str) -> bool:
    """Whether a file claims to be an image, by the first bytes of its content or by its name."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data.startswith(_MAGIC) or name.lower().endswith(SUFFIXES)


def is_deep_png(data: bytes) -> bool:
    """Whether `data` is a PNG file of 16 bits."""
    return deep_files.png_bits(data) == 16


class _Deep(NamedTuple):
    """An image of more than 8 bits.

    Attributes:
      values: Grey values [height, width] or colours [height, width, 3].
      alpha: Opacity in 0..255, uint8 [height, width], or None.
    """

    values: np.ndarray
    alpha: np.ndarray | None

    def visible(self) -> np.ndarray:
        """`values`, with 0 where nothing is seen of them."""
        if self.alpha is None:
            return self.values
        seen = self.alpha > 0
        return np.where(seen if self.values.ndim == 2 else seen[..., None], self.values, 0)


def _decode(
    data: bytes, bits: str, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image | None, Facts]:
    """Decodes an image at its own size as RGB, as `read` does."""
    try:
        return _opened(data, bits, max_pixels)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise any type on damaged data
        raise ValueError(str(error) or type(error).__name__) from error


def _open(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        if data.startswith(_TIFF_MAGIC) and len(data) > 8:
            raise ValueError(
                "damaged TIFF, or one of a kind of pixels that is not read: expected grey or RGB "
                "of 8 or 16 bits, or grey of 32 bits"
            ) from None
        raise NotAnImageError("unknown image format") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels, expected at most {max_pixels}")
    return image


def _opened(data: bytes, bits: str, max_pixels: int) -> tuple[Image.Image | None, Facts]:
    image = _open(data, max_pixels)
    is_tiff = image.format == "TIFF"
    frames = image.format in _STACKS and getattr(image, "is_animated", False)
    # Pillow applies the orientation of a TIFF, and forgets it, as it loads the pixels.
    turn = image.tag_v2.get(_ORIENTATION, 1) if is_tiff else 1
    deep = None if image.format in _ALWAYS_8_BITS else _deep_values(image, data)
    if deep is None:
        values = None
        rgb, transparent = _to_rgb(image)
    else:
        visible = deep.visible()
        values = bit_depth.measure(visible)
        rgb, transparent = None, deep.alpha is not None and int(deep.alpha.min()) < 255
        if bits != AUTO:
            rgb = _from_deep(bit_depth.to_uint8(visible, values, bits), deep.alpha)
    if not is_tiff:
        turn = _orientation(image)
        if rgb is not None and turn in _TURNS:
            rgb = rgb.transpose(_TURNS[turn])
    width, height = image.size
    elongated = max(width, height) > MAX_ASPECT * min(width, height)
    oriented = turn in _TURNS
    if deep is None and not (oriented or transparent or frames or elongated):
        return rgb, PLAIN
    return rgb, Facts(oriented, transparent, frames, elongated, values)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image; 1 if it has none or its EXIF is damaged."""
    if _EXIF_KEYS.isdisjoint(image.info):
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # viewers show an image with damaged EXIF as it is stored
        return 1


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image of 8 bits as RGB over `BACKGROUND`, and whether it has transparent pixels."""
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _over_background(image.convert("RGBA"))
    if image.mode == "RGB":
        image.load()
        if "transparency" not in image.info:  # a PNG file may name it after its pixels
            return image, False
        return _over_background(image.convert("RGBA"))
    return image.convert("RGB"), False


def _over_background(rgba: Image.Image) -> tuple[Image.Image, bool]:
    lowest, highest = rgba.getchannel("A").getextrema()
    if highest == 0:
        raise ValueError("all of its pixels are transparent")
    transparent = lowest < 255
    if transparent:
        rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba)
    return rgba.convert("RGB"), transparent


def _from_deep(
    values: UInt8[np.ndarray, "height width *channels"],
    alpha: UInt8[np.ndarray, "height width"] | None,
) -> Image.Image:
    """An image of scaled values as RGB over `BACKGROUND`."""
    rgb = Image.fromarray(values).convert("RGB")
    if alpha is None:
        return rgb
    rgb.putalpha(Image.fromarray(alpha))
    return _over_background(rgb)[0]


def _deep_values(image: Image.Image, data: bytes) -> _Deep | None:
    """The values of an opened image that has more than 8 bits; None for one of 8 bits."""
    is_grey = image.mode.startswith(("I", "F"))
    if image.format == "PPM":
        values = deep_files.pnm_values(data)
        if values is not None:
            return _Deep(values, None)
    elif image.format == "JPEG2000":
        bits = deep_files.jpeg2000_bits(data)
        if bits > 8 and not is_grey:
            raise ValueError(f"JPEG 2000 colours of {bits} bits, expected 8 bits, or TIFF or PNG")
        if is_grey:  # Pillow scales them to 16 bits
            return _Deep(np.asarray(image) >> (16 - min(bits, 16)), None)
    elif image.format == "TIFF":
        _check_tiff(image, is_grey)
    if is_grey:
        return _with_transparent_value(np.asarray(image), image)
    if deep_files.is_png_grey_alpha(data):
        pixels = np.asarray(_open(deep_files.png_bytes_as_rgba(data))).astype(np.uint16)
        image.load()
        return _Deep(pixels[..., 0] << 8 | pixels[..., 1], pixels[..., 2].astype(np.uint8))
    is_deep_tiff = image.format == "TIFF" and image.tag_v2.get(_BITS, (8,))[0] == 16
    if not is_deep_tiff and deep_files.png_bits(data) != 16:
        return None
    # Pillow decodes colours of 16 bits to their upper bytes. In the other byte order these are the
    # lower ones.
    is_little = (
        is_deep_tiff
        and (sys.byteorder if image.tile[0][0] == "libtiff" else _tiff_order(data)) == "little"
    )
    upper, lower = (_decoded_in_order(data, order) for order in ("LB" if is_little else "BL"))
    values = upper.astype(np.uint16) << 8 | lower
    image.load()
    if image.mode == "RGBA":
        return _Deep(values[..., :3], upper[..., 3])
    return _with_transparent_value(values, image)


def _check_tiff(image: Image.Image, is_grey: bool) -> None:
    """Refuses a TIFF whose values Pillow would misread."""
    tags = image.tag_v2
    bits = tags.get(_BITS, (1,))[0]
    if is_grey and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError(f"greys of {bits} bits in which 0 is white, expected 0 to be black")
    if bits == 8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 2:
        raise ValueError("signed values of 8 bits, expected unsigned ones")
    is_colour_of_16_bits = bits == 16 and not is_grey
    if is_colour_of_16_bits and (
        image.mode not in ("RGB", "RGBA") or tags.get(_EXTRA_SAMPLES) == (1,)
    ):
        raise ValueError("colours of 16 bits that are not RGB or RGBA, expected one of these")
    if is_colour_of_16_bits and tags.get(_PLANAR) == 2 and image.tile[0][0] == "libtiff":
        raise ValueError("colours of 16 bits in compressed planes, expected them pixel by pixel")


def _tiff_order(data: bytes) -> str:
    return "little" if data.startswith(b"II") else "big"


def _decoded_in_order(data: bytes, order: str) -> UInt8[np.ndarray, "height width channels"]:
    """A file of 16-bit colours as Pillow decodes it if its byte order is `order` ("L" or "B")."""
    image = _open(data)

    def reordered(tile: tuple) -> tuple:
        codec, box, offset, args = tile
        mode, *rest = [args] if isinstance(args, str) else args
        mode = f"{mode.partition(';')[0]};16{order}"
        new = mode if isinstance(args, str) else (mode, *rest)
        return tuple.__new__(type(tile), (codec, box, offset, new))

    image.tile = [reordered(tile) for tile in image.tile]
    return np.asarray(image)


def _with_transparent_value(values: np.ndarray, image: Image.Image) -> _Deep:
    """An image in which a PNG file may declare one grey value or colour to be transparent."""
    value = image.info.get("transparency")
    if value is None:
        return _Deep(values, None)
    hidden = values == np.asarray(value)
    hidden = hidden.all(-1) if values.ndim == 3 else hidden
    return _Deep(values, np.where(hidden, 0, 255).astype(np.uint8))


def resize(
    images: UInt8[np.ndarray, "n height width 3"], size: int, fit: str = DEFAULTS.fit
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """Makes each image a square as `read` does; images of that size are not copied."""
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        resized[i] = _to_square(Image.fromarray(image), size, fit)
    return resized


def shrink(image: UInt8[np.ndarray, "height width 3"], longest: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image whose longer side has at most `longest` pixels, of the same proportions."""
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def over_background(
    image: UInt8[np.ndarray, "height width 4"],
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """An RGBA image as RGB over `BACKGROUND`, and whether it has transparent pixels.

    Raises:
      ValueError: All of its pixels are transparent.
    """
    rgb, transparent = _over_background(Image.fromarray(image))
    return np.asarray(rgb), transparent


def from_pillow(image: PillowImage) -> np.ndarray:
    """The pixels of an image of Pillow, as RGB if it has 8 bits, else its values."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    return np.asarray(_to_rgb(image)[0])


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes `image` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_thumbnail(
    image: UInt8[np.ndarray, "height width 3"], side: int, quality: int = 82
) -> bytes:
    """Encodes `image` as a JPEG file, shrunk so that neither side is longer than `side` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def as_png_or_jpeg(data: bytes, bits: str = AUTO) -> bytes:
    """Returns a PNG or JPEG file of 8 bits unchanged, and any other image as an RGB PNG file.

    `decode` gives the same result before and after.

    Args:
      data: An encoded image.
      bits: Scale of values of more than 8 bits, see `bit_depth`.

    Raises:
      ValueError: As for `read`.
    """
    if data.startswith(b"\xff\xd8\xff") or 0 < deep_files.png_bits(data) <= 8:
        return data
    return encode_png(decode_whole(data, bits)[0])


def _to_square(image: Image.Image, size: int, fit: str) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if fit == "pad":
        return _padded(image, size)
    if frame := frame_side(fit):
        return _framed(image, frame).resize((size, size), Image.Resampling.BICUBIC)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The image resized to fit into a square, centred between bars of its border's median."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), _border(image))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def _framed(image: Image.Image, side: int) -> Image.Image:
    """The central square of `side` pixels, filled with the border's median outside the image."""
    square = Image.new("RGB", (side, side), _border(image))
    # Floor division: a side that is larger by an odd number loses one pixel more at its start.
    square.paste(image, tuple((side - own) // 2 for own in image.size))
    return square


def _border(image: Image.Image) -> tuple[int, ...]:
    """The median of the border's pixels in each channel, without its fraction."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.median(border, axis=0).astype(int).tolist())


def reencode(
    image: UInt8[np.ndarray, "height width 3"], file_format: str, quality: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Compresses `image` as "JPEG" or "WEBP" of `quality` in 1..100, and decodes it again."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def shrink_and_enlarge(
    image: UInt8[np.ndarray, "height width 3"], factor: float, method: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes `image` to `factor` of its size and back, by `method` "box" or "bicubic"."""
    resampling = Image.Resampling[method.upper()]
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    shrunk = Image.fromarray(image).resize(small, resampling)
    return np.array(shrunk.resize((width, height), resampling))


def draw_discs(
    height: int, width: int, discs: Sequence[tuple[int, int, int, int]]
) -> UInt8[np.ndarray, "{height} {width}"]:
    """A grey image of discs (x, y, radius, value) on 0; later discs cover earlier ones."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for x, y, radius, value in discs:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
    return np.array(canvas)
