"""Decodes, resizes and encodes images, and distorts them by Pillow's means.

This is the only module that imports Pillow, so what corruptions need of it is here too.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import PIL
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from bloodjax.data import bit_depth, deep_files, deep_images, image_types
from bloodjax.data.facts import BACKGROUND, MAX_ASPECT, PLAIN, Facts, Tally
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions, frame_side

# Formats that microscopes and archives use, in the order in which they are tried. Pillow's other
# readers are not used, because they are unsafe: the one for EPS starts Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "DIB")

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
_STACKS = ("GIF", "PNG", "TIFF", "WEBP")


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
) -> tuple[UInt8[np.ndarray, "height width 3"], Tally]:
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
        bits = bit_depth.choose([facts.values])
        image, _ = _decode(data, bits, max_pixels)
    return np.asarray(image), Tally.count([facts], bits)


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
    """The pixels of an image of Pillow, as RGB if it has 8 bits, else its values.

    Like a file, it is turned by the EXIF orientation in its `info`.
    """
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    image.load()
    rgb, turn = _to_rgb(image)[0], _orientation(image)
    return np.asarray(rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb)


def _decode(
    data: bytes, bits: str, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image | None, Facts]:
    """Decodes an image at its own size as RGB, as `read` does."""
    try:
        return _rgb_and_facts(data, bits, max_pixels)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise any type on damaged data
        raise ValueError(str(error) or type(error).__name__) from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"more pixels than are read, expected at most {max_pixels}") from None
    except Image.UnidentifiedImageError:
        if image_types.is_tiff(data) and len(data) > 8:
            raise ValueError(
                "damaged TIFF, or one of a kind of pixels that is not read: expected grey or RGB "
                "of 8 or 16 bits, or grey of 32 bits"
            ) from None
        raise NotAnImageError("unknown image format") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels, expected at most {max_pixels}")
    return image


def _rgb_and_facts(data: bytes, bits: str, max_pixels: int) -> tuple[Image.Image | None, Facts]:
    image = _open(data, max_pixels)
    is_tiff = image.format == "TIFF"
    frames = image.format in _STACKS and getattr(image, "is_animated", False)
    # Pillow applies the orientation of a TIFF, and forgets it, as it loads the pixels.
    turn = image.tag_v2.get(_ORIENTATION, 1) if is_tiff else 1
    deep = deep_images.read(image, data, lambda other: _open(other, max_pixels))
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
    if image.mode == "RGB":
        image.load()  # a PNG file may name a transparent colour after its pixels
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _over_background(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB"), False


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


def shrink(
    image: UInt8[np.ndarray, "height width 3"] | Float32[np.ndarray, "height width"], longest: int
) -> UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _"]:
    """An image or a map whose longer side has at most `longest` pixels, of the same proportions."""
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


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
    if image_types.is_jpeg(data) or 0 < deep_files.png_bits(data) <= 8:
        return data
    return encode_png(decode_whole(data, bits)[0])


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
