"""URLs of objects and folders in buckets: gs://BUCKET/NAME and s3://BUCKET/NAME.

A bucket has no folders. An object's name contains slashes, and `gs://BUCKET/cells` stands for all
objects whose names start with `cells/`. A URL is the name of an object or of such a folder.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from bloodjax.errors import UserError

# What a URL may start with -> the scheme that stands for it.
_SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3"}


class Parts(NamedTuple):
    """The parts of a URL.

    Attributes:
      scheme: "gs" or "s3".
      bucket: Name of the bucket.
      name: Name of the object or the folder; "" for the whole bucket.
    """

    scheme: str
    bucket: str
    name: str


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one in a bucket: gs://, gcs:// or s3://."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme in _SCHEMES


def check(path: str) -> None:
    """Raises a `UserError` for an empty path, or one with `://` whose scheme is not a bucket's."""
    if not path:
        raise UserError("a path is empty, expected that of a file or folder")
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path)
    if match and not is_remote(path):
        raise UserError(
            f"{path}: {match[0]} is not supported, expected a local path, gs://BUCKET/NAME or "
            "s3://BUCKET/NAME"
        )


def split(url: str) -> Parts:
    """The parts of a URL.

    Raises:
      UserError: It names no bucket.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme not in _SCHEMES or not bucket:
        raise UserError(f"{url}: names no bucket, expected gs://BUCKET/NAME or s3://BUCKET/NAME")
    return Parts(_SCHEMES[scheme], bucket, name)


def split_object(url: str) -> Parts:
    """The parts of an object's URL.

    Raises:
      UserError: It names no bucket, or a whole bucket.
    """
    parts = split(url)
    if not parts.name.strip("/"):
        raise UserError(f"{url}: names a bucket, expected {url.rstrip('/')}/NAME")
    return parts


def normalised(url: str) -> str:
    """A URL in its one form: with gs:// for gcs://, and without a slash at its end.

    Raises:
      UserError: It names no bucket.
    """
    scheme, bucket, name = split(url)
    return f"{scheme}://{bucket}/{name}".rstrip("/")


def absolute(path: str) -> str:
    """The absolute path of a local file or folder, or a URL in its one form."""
    return normalised(path) if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def join(url: str, *names: str) -> str:
    """A URL below another. Names that are "" are left out."""
    return "/".join((url.rstrip("/"), *filter(None, names)))


def endpoint(url: str) -> str:
    """The address that requests for a URL are sent to, as the environment states it."""
    if split(url).scheme == "gs":
        return os.environ.get("STORAGE_EMULATOR_HOST") or "storage.googleapis.com"
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(filter(None, map(os.environ.get, variables)), "Amazon S3")
