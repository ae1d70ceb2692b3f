"""Files of images, with Pillow or byte by byte."""

import io
import struct
import zlib

from PIL import Image


def encoded(image, mode="RGB", format="PNG", **settings):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format, **settings)
    return buffer.getvalue()


def saved(values, format, **settings):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **settings)
    return buffer.getvalue()


def png(header, body):
    """A PNG file of these contents of IHDR and IDAT."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    ends = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


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
