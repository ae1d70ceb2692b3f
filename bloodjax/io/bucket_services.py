"""The requests in which GCS and S3 differ.

Both services have the same methods. They raise what the libraries raise, among it
`FileNotFoundError`. Requests that are the same for both are those of fsspec (`system`).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from bloodjax.io import bucket_connection, bucket_urls

# Instead of a tag: there is no such object.
ABSENT = ""

# Bytes from which gcsfs downloads an object in several requests.
_LARGE = 100 * 2**20
_BOUNDARY = f"bloodjax-{os.urandom(12).hex()}"


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    """An object in a bucket.

    Attributes:
      size: In bytes.
      tag: Changes with each write: the generation (GCS) or the ETag (S3).
      md5: MD5 of the content in hexadecimal, or "" if the bucket does not state it.
    """

    size: int
    tag: str
    md5: str = ""


@dataclasses.dataclass(frozen=True)
class S3:
    """Requests to S3.

    Attributes:
      system: The file system of s3fs.
      repeats_downloads: Whether `system` repeats a download whose connection fails.
    """

    system: Any

    repeats_downloads = False

    def info(self, entry: Mapping[str, Any]) -> ObjectInfo:
        """What an entry of a listing states."""
        tag = str(entry.get("ETag", "")).strip('"')
        # The ETag of an object that was uploaded at once is its MD5.
        md5 = tag if re.fullmatch("[0-9a-f]{32}", tag) else ""
        return ObjectInfo(int(entry["size"]), tag, md5)

    def stat(self, bucket: str, name: str) -> ObjectInfo:
        """What the service states of an object."""
        head = self.system.call_s3("head_object", Bucket=bucket, Key=name)
        return self.info({"size": head["ContentLength"], "ETag": head["ETag"]})

    def check_bucket(self, bucket: str) -> None:
        """Raises `FileNotFoundError` if there is no such bucket."""
        self.system.call_s3("head_bucket", Bucket=bucket)

    def put(self, bucket: str, name: str, data: bytes, expected: str | None) -> str:
        """Writes an object and returns its tag.

        Args:
          bucket: Name of the bucket.
          name: Name of the object.
          data: Its content.
          expected: The tag that the object must have now, or `ABSENT`; None for any state.
        """
        condition = {}
        if expected == ABSENT:
            condition = {"IfNoneMatch": "*"}
        elif expected is not None:
            condition = {"IfMatch": f'"{expected}"'}
        answer = self.system.call_s3("put_object", Bucket=bucket, Key=name, Body=data, **condition)
        return answer["ETag"].strip('"')

    def states_md5(self, bucket: str, name: str) -> bool:
        """Whether `ObjectInfo.md5` is the MD5: not if a key of the user's encrypts the object."""
        head = self.system.call_s3("head_object", Bucket=bucket, Key=name)
        encryption = head.get("ServerSideEncryption") or "AES256"
        return not head.get("SSECustomerAlgorithm") and encryption == "AES256"

    def download_options(self, size: int) -> dict[str, Any]:
        """Arguments of `system.get_file` for an object of `size` bytes."""
        return {}

    def upload_options(self) -> dict[str, Any]:
        """Arguments of `system.put_file` with which the service verifies what it gets."""
        return {}


@dataclasses.dataclass(frozen=True)
class Gcs:
    """Requests to GCS. Attributes and methods are those of `S3`; `system` is that of gcsfs."""

    system: Any

    repeats_downloads = True

    def info(self, entry: Mapping[str, Any]) -> ObjectInfo:
        """What an entry of a listing states."""
        md5 = base64.b64decode(entry.get("md5Hash") or "").hex()
        return ObjectInfo(int(entry["size"]), str(entry.get("generation", "")), md5)

    def stat(self, bucket: str, name: str) -> ObjectInfo:
        """What the service states of an object."""
        return self.info(self.system.call("GET", "b/{}/o/{}", bucket, name, json_out=True))

    def check_bucket(self, bucket: str) -> None:
        """Raises `FileNotFoundError` if there is no such bucket."""
        # Reading the bucket's own metadata needs another right than reading its objects.
        self.system.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)

    def put(self, bucket: str, name: str, data: bytes, expected: str | None) -> str:
        """Writes an object and returns its tag."""
        condition = {}
        if expected is not None:
            condition["ifGenerationMatch"] = "0" if expected == ABSENT else expected
        base = self.system.base.replace("/storage/v1/", "/upload/storage/v1/")
        answer = self.system.call(
            "POST",
            f"{base}b/{urllib.parse.quote(bucket, safe='')}/o",
            uploadType="multipart",
            name=name,
            headers={"Content-Type": f"multipart/related; boundary={_BOUNDARY}"},
            data=_multipart(name, data),
            json_out=True,
            **condition,
        )
        return str(answer["generation"])

    def states_md5(self, bucket: str, name: str) -> bool:
        """Whether `ObjectInfo.md5` is the MD5."""
        return True

    def download_options(self, size: int) -> dict[str, Any]:
        """Arguments of `system.get_file` for an object of `size` bytes."""
        # With headers, gcsfs sends one request, up to 6 times. Without them it downloads the parts
        # of large objects at the same time, and sends each request up to 6 times 6 times.
        return {"headers": {}} if size < _LARGE else {}

    def upload_options(self) -> dict[str, Any]:
        """Arguments of `system.put_file` with which the service verifies what it gets."""
        return {"consistency": "md5"}


def service_of(url: str) -> S3 | Gcs:
    """The service that has the bucket of a URL.

    Raises:
      UserError: As for `bucket_connection.file_system`.
    """
    system = bucket_connection.file_system(url)
    return S3(system) if bucket_urls.split(url).scheme == "s3" else Gcs(system)


def _multipart(name: str, data: bytes) -> bytes:
    """The body of a write to GCS: with the MD5, which GCS verifies, and the content."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    metadata = json.dumps({"name": name, "md5Hash": base64.b64encode(digest).decode()})
    start = b"--" + _BOUNDARY.encode()
    parts = (
        (b"application/json; charset=UTF-8", metadata.encode()),
        (b"application/octet-stream", data),
    )
    body = [start + b"\r\nContent-Type: " + kind + b"\r\n\r\n" + part for kind, part in parts]
    return b"\r\n".join([*body, start + b"--"])
