"""Reads the files of a multipart request into memory. The one door to python_multipart.

No file is written, and the names are texts that go back to the client; they name nothing here.
"""

from __future__ import annotations

import dataclasses

from python_multipart import multipart

from bloodjax.serving.limits import MEGABYTE, Limits, Refused

FIELD = "files"
# A path in a folder; a longer name is cut.
_LONGEST_NAME = 1000
_LONGEST_HEADER = 8192
_FORM = b"multipart/form-data"


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file of a request.

    Attributes:
      name: The name that the client gave it.
      data: Its content; empty if there is an `error`.
      error: Why it was not taken, or "".
    """

    name: str
    data: bytes
    error: str = ""


class Reader:
    """Takes the body of a request in pieces, and refuses it as soon as it exceeds a limit."""

    def __init__(self, content_type: str, limits: Limits):
        """Starts a request.

        Args:
          content_type: The header Content-Type.
          limits: Bounds of the request.

        Raises:
          Refused: It is no multipart request.
        """
        kind, options = multipart.parse_options_header(content_type)
        if kind != _FORM or not options.get(b"boundary"):
            raise Refused(415, f"expected multipart/form-data with files in the field {FIELD!r}")
        self._limits, self._size = limits, 0
        self._uploads: list[Upload] = []
        self._header, self._value = b"", b""
        self._disposition: bytes | None = None
        self._content = bytearray()
        self._too_large = self._ended = False
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_part,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = multipart.MultipartParser(
                options[b"boundary"], callbacks, max_header_size=_LONGEST_HEADER
            )
        except multipart.FormParserError as error:
            raise Refused(400, f"damaged multipart request: {error}") from None

    def feed(self, piece: bytes) -> None:
        """Takes the next piece of the body.

        Raises:
          Refused: The request is damaged, too large, or has too many files.
        """
        self._size += len(piece)
        if self._size > self._limits.request_bytes:
            most = self._limits.request_bytes // MEGABYTE
            raise Refused(413, f"expected a request of at most {most} MB")
        try:
            self._parser.write(piece)
        except multipart.FormParserError as error:
            raise Refused(400, f"damaged multipart request: {error}") from None

    def finish(self) -> list[Upload]:
        """The files of the request, of which there is at least one.

        Raises:
          Refused: The request is truncated or has no files.
        """
        if not self._ended:
            raise Refused(400, "damaged multipart request: it is truncated")
        if not self._uploads:
            raise Refused(400, f"no files, expected at least one in the field {FIELD!r}")
        return self._uploads

    def _begin(self) -> None:
        if len(self._uploads) >= self._limits.files:
            raise Refused(413, f"expected at most {self._limits.files} files in a request")
        self._disposition, self._content, self._too_large = None, bytearray(), False

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _check_part(self) -> None:
        # The parser takes header values as latin-1; browsers send names as UTF-8.
        _, options = multipart.parse_options_header((self._disposition or b"").decode("latin-1"))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise Refused(400, f"unexpected field {field[:80]!r}, expected {FIELD!r} only")
        name = options.get(b"filename", b"").decode("utf-8", "replace")[:_LONGEST_NAME]
        self._name = name or f"file {len(self._uploads) + 1}"

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._too_large:
            return
        if len(self._content) + end - start > self._limits.file_bytes:
            self._too_large, self._content = True, bytearray()
            return
        self._content += data[start:end]

    def _end_part(self) -> None:
        most = self._limits.file_bytes / MEGABYTE
        error = f"larger than the limit of {most:g} MB" if self._too_large else ""
        self._uploads.append(Upload(self._name, bytes(self._content), error))

    def _end(self) -> None:
        self._ended = True
