"""Which files are meant to be images, by their names and first bytes, without decoding them."""

from __future__ import annotations

# Suffixes of files that are meant to be images. Files are read by their content.
SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG = b"\xff\xd8\xff"
_FIRST_BYTES = (
    *(b"\x89PNG\r\n\x1a\n", _JPEG, b"GIF87a", b"GIF89a", *_TIFF),
    *(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000
)


def is_image(data: bytes, name: str) -> bool:
    """Whether a file claims to be an image, by the first bytes of its content or by its name."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data.startswith(_FIRST_BYTES) or name.lower().endswith(SUFFIXES)


def is_tiff(data: bytes) -> bool:
    """Whether a file claims to be a TIFF file, by its first bytes."""
    return data.startswith(_TIFF)


def is_jpeg(data: bytes) -> bool:
    """Whether a file claims to be a JPEG file, by its first bytes."""
    return data.startswith(_JPEG)
