"""Decodes, resizes and encodes images. The only module that imports Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

# Formats that microscopes and archives use. Pillow's other readers are not used, because they are
# unsafe: the one for EPS starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)

# An image of one cell is far smaller. A file of a few bytes can claim to be far larger.
MAX_PIXELS = 64_000_000


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes an image, crops it to its central square and resizes that.

    Resizing uses antialiased bicubic interpolation; an image that already has the size keeps its
    exact pixels. Transparency is dropped, 16-bit grey values keep their upper 8 bits, EXIF
    orientation is ignored, and only the first of several frames is used.

    Args:
      data: An encoded image in one of `FORMATS`.
      size: Height and width of the result in pixels.

    Returns:
      uint8 RGB.

    Raises:
      ValueError: `data` is not an image, is truncated, or has more than `MAX_PIXELS` pixels.
    """
    return _decode(data, lambda image: _centre_square(image, size))


def _decode(
    data: bytes, change: Callable[[Image.Image], Image.Image] = lambda image: image
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image as RGB, after `change`; raises ValueError as `decode` does."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, expected at most {MAX_PIXELS}")
        return np.asarray(change(_to_rgb(image)))
    except Image.UnidentifiedImageError:
        raise ValueError("unknown image format") from None
    except Exception as error:  # Pillow's readers raise any type on damaged data
        raise ValueError(str(error) or type(error).__name__) from error


def resize(
    images: UInt8[np.ndarray, "n height width 3"], size: int
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """Crops and resizes each image as `decode` does; images of that size are not copied."""
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        resized[i] = _centre_square(Image.fromarray(image), size)
    return resized


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes `image` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def as_png_or_jpeg(data: bytes) -> bytes:
    """Returns a PNG or JPEG file unchanged, and re-encodes any other image as an RGB PNG file.

    `decode` gives the same result before and after.

    Raises:
      ValueError: As for `decode`.
    """
    if data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        return data
    return encode_png(_decode(data))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("grey values of more than 16 bits")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("grey values that are not integers")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


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
