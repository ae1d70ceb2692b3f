"""What the server accepts: sizes, counts and times."""

from __future__ import annotations

import dataclasses

MEGABYTE = 1_000_000
# Room for the names of the files in a request, and for what separates them.
_OVERHEAD = MEGABYTE
# A request of many small files is bounded as a whole, because all of it is held in memory.
_REQUEST_BYTES = 256 * MEGABYTE


class Refused(Exception):
    """A request that the server does not answer.

    Attributes:
      status: The HTTP status, of 4xx.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
      file_bytes: Most bytes of an encoded image; a larger file gets an error of its own.
      files: Most files of a request.
      pixels: Most pixels of an image; an image of more gets an error of its own, and is not
        decoded.
      seconds: Seconds until a request is given up.
    """

    file_bytes: int = 20 * MEGABYTE
    files: int = 64
    pixels: int = 40_000_000
    seconds: float = 60.0

    @property
    def request_bytes(self) -> int:
        """Most bytes of a request."""
        return _OVERHEAD + max(self.file_bytes, min(self.files * self.file_bytes, _REQUEST_BYTES))
