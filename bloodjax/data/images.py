"""Images in and out of bytes, resampled, drawn on. The one module that imports Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

# What microscopes and archives write. Pillow's other readers (EPS starts Ghostscript) stay shut.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)

# An image of one cell is far smaller; a file of a few bytes can claim far more.
MAX_PIXELS = 64_000_000


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The centre square of an encoded image, as RGB of `size` x `size`.

    The square over the whole shorter side is resized by antialiased bicubic interpolation; a
    image that already fits keeps its exact pixels. Transparency is dropped, 16-bit greys keep
    their upper 8 bits, EXIF orientation is left alone and of several frames the first counts.

    Raises:
      ValueError: `data` is no image, is cut short, or holds more than `MAX_PIXELS`.
    """
    return _opened(data, lambda image: _centre_square(image, size))


def _opened(
    data: bytes, change: Callable[[Image.Image], Image.Image] = lambda image: image
) -> UInt8[np.ndarray, "height width 3"]:
    """An encoded image as RGB, after `change`; raises ValueError as `decode`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, expected at most {MAX_PIXELS}")
        return np.asarray(change(_to_rgb(image)))
    except Image.UnidentifiedImageError:
        raise ValueError("no image format that is known") from None
    except Exception as error:  # on damaged bytes Pillow's readers raise anything
        raise ValueError(str(error) or type(error).__name__) from error


def resize(
    images: UInt8[np.ndarray, "n height width 3"], size: int
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """Resizes and crops each image as `decode` does; images that already fit are not copied."""
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        resized[i] = _centre_square(Image.fromarray(image), size)
    return resized


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The bytes of `image` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def as_png_or_jpeg(data: bytes) -> bytes:
    """An encoded image as it is, where it is one of these; else a PNG of all of it, as RGB.

    `decode` gives the same of both.

    Raises:
      ValueError: as `decode`.
    """
    if data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        return data
    return encode_png(_opened(data))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("grey values of more than 16 bits")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("grey values that are not whole numbers")
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
    """What is left of `image` after a lossy file: "JPEG" or "WEBP" of `quality` in 1..100."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def shrink_and_enlarge(
    image: UInt8[np.ndarray, "height width 3"], factor: float, method: str
) -> UInt8[np.ndarray, "height width 3"]:
    """`image` at `factor` of its size and back; `method` is "box" or "bicubic"."""
    resampling = Image.Resampling[method.upper()]
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    shrunk = Image.fromarray(image).resize(small, resampling)
    return np.array(shrunk.resize((width, height), resampling))


def draw_discs(
    height: int, width: int, discs: Sequence[tuple[int, int, int, int]]
) -> UInt8[np.ndarray, "{height} {width}"]:
    """A grey image of discs (x, y, radius, value), later ones over earlier ones, on 0."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for x, y, radius, value in discs:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
    return np.array(canvas)
