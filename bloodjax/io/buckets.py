"""Requests to buckets of GCS and S3: reads, writes, lists. The one door to fsspec and its systems.

A bucket has no folders. An object's name contains slashes, and `gs://BUCKET/cells` stands for all
objects whose names start with `cells/`. A URL is the name of an object or of such a folder.

Endpoint and credentials are the ones that the libraries of Google and Amazon look for:
`AWS_ENDPOINT_URL`, `STORAGE_EMULATOR_HOST`, `AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`
and so on. Requests that fail for a reason that may pass are repeated.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bloodjax.errors import UserError
from bloodjax.io import bucket_errors, files

# Seconds without an answer, or without a byte of one, after which a request fails.
TIMEOUT = 30.0
# Times that a request to S3 is sent before it fails; gcsfs has 6.
TRIES = 3
# Requests at a time.
PARALLEL = 16
# Downloads of one object before it counts as damaged.
DOWNLOADS = 3
# Bytes of each part of an object that is uploaded in parts; S3 allows 10,000 parts.
_PART = 64 * 2**20
_MAX_PARTS = 10_000
# Bytes from which gcsfs downloads an object in several requests.
_LARGE = 100 * 2**20

_SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3"}
# Variables on which the connection depends.
_ENVIRONMENT = re.compile(
    "(AWS_|GOOGLE_|GCE_|CLOUDSDK_|FSSPEC_)|(STORAGE_EMULATOR_HOST|NO_GCE_CHECK|HOME)$"
)
_BOUNDARY = f"bloodjax-{os.urandom(12).hex()}"
_ABSENT = "absent"


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


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one in a bucket: gs://, gcs:// or s3://."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme in _SCHEMES


def check(path: str) -> None:
    """Raises a `UserError` for a path with `://` whose scheme is not one of a bucket."""
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path)
    if match and not is_remote(path):
        raise UserError(
            f"{path}: {match[0]} is not supported, expected a local path, gs://BUCKET/NAME or "
            "s3://BUCKET/NAME"
        )


def normalised(url: str) -> str:
    """A URL in the one form of its spellings: gs:// for gcs://, without a slash at its end.

    Raises:
      UserError: It names no bucket.
    """
    scheme, bucket, name = _split(url)
    return f"{scheme}://{bucket}/{name}".rstrip("/")


def join(url: str, *names: str) -> str:
    """A URL below another. Names that are "" are left out."""
    return "/".join((url.rstrip("/"), *filter(None, names)))


def endpoint(url: str) -> str:
    """Where requests for a URL go to, as the environment says."""
    if _split(url)[0] == "gs":
        return os.environ.get("STORAGE_EMULATOR_HOST") or "storage.googleapis.com"
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(filter(None, map(os.environ.get, variables)), "Amazon S3")


def list_files(url: str) -> dict[str, ObjectInfo]:
    """The objects below a URL by their names relative to it; {"": info} if it is an object.

    Args:
      url: An object or a folder. If there are both, the object, unless `url` ends in a slash.

    Raises:
      UserError: The bucket cannot be read, or the name of an object cannot be one of a file.
    """
    scheme, bucket, name = _split(url)
    system, path = _system(url), f"{bucket}/{name}".rstrip("/")
    with _explained(url):
        if name and not url.endswith("/"):
            info = _stat(system, scheme, path)
            if info is not None:
                return {"": info}
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            found = {}
        if not found:
            _check_bucket(system, url)
    listed = {}
    for full, entry in found.items():
        relative = full[len(path) + 1 :]
        if not relative or full.endswith("/") or entry.get("type") == "directory":
            continue  # an object that only stands for the folder
        if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
            raise UserError(f"{url}: the object {relative!r} cannot be a file, expected a path")
        listed[relative] = _info(scheme, entry)
    return listed


def stat(url: str) -> ObjectInfo | None:
    """Size and tag of an object; None if there is none.

    Raises:
      UserError: The bucket cannot be read.
    """
    scheme, bucket, name = _split(url, object_name=True)
    system = _system(url)
    with _explained(url):
        found = _stat(system, scheme, f"{bucket}/{name}")
        if found is None:
            _check_bucket(system, url)
    return found


def read_bytes(url: str) -> bytes:
    """The content of an object.

    Raises:
      UserError: There is no such object, or the bucket cannot be read.
    """
    _, bucket, name = _split(url, object_name=True)
    system = _system(url)
    with _explained(url):
        return system.cat_file(f"{bucket}/{name}")


def write_bytes(url: str, data: bytes) -> str:
    """Writes a small object, or replaces it, and returns its tag.

    Raises:
      UserError: The bucket cannot be written to.
    """
    tag = _put(url, data, "")
    assert tag is not None
    return tag


def create_exclusive(url: str, data: bytes) -> str | None:
    """Creates an object if there is none of this name. One of several callers succeeds.

    Args:
      url: The object.
      data: Its content. It should be the caller's own: if a request is repeated because its
        answer was lost, an object with this content is one that the first request created.

    Returns:
      The tag of the new object; None if there is one already.

    Raises:
      UserError: The bucket cannot be written to.
    """
    return _put(url, data, _ABSENT)


def replace(url: str, data: bytes, tag: str) -> str | None:
    """Replaces an object if its tag is `tag`. One of several callers succeeds.

    Args:
      url: The object.
      data: Its new content, the caller's own (see `create_exclusive`).
      tag: Tag of the content that is replaced.

    Returns:
      The tag of the new content; None if the object has another tag or is gone.

    Raises:
      UserError: The bucket cannot be written to.
    """
    return _put(url, data, tag)


def remove(url: str) -> None:
    """Deletes an object. One that does not exist is no error.

    Raises:
      UserError: The bucket cannot be written to.
    """
    _, bucket, name = _split(url, object_name=True)
    system = _system(url)
    with _explained(url), contextlib.suppress(FileNotFoundError):
        system.rm_file(f"{bucket}/{name}")


def fetch(url: str, info: ObjectInfo, path: pathlib.Path, temporary: pathlib.Path) -> ObjectInfo:
    """Downloads an object, verifies it, and renames it to `path` when it is complete.

    Args:
      url: The object.
      info: What it should be. If it was replaced meanwhile, its new content is downloaded.
      path: Where to write. Missing folders are made; a folder of this name is replaced.
      temporary: Where to write before, on the same disk.

    Returns:
      What the object was when it was downloaded.

    Raises:
      UserError: It cannot be downloaded, or what arrives differs from what the bucket states in
        size or MD5, `DOWNLOADS` times.
    """
    scheme, bucket, name = _split(url, object_name=True)
    system, problem = _system(url), ""
    # With headers, gcsfs sends one request. Else it repeats a request up to 6 times, and all of
    # this 6 times, to download parts of large objects at the same time.
    options = {"headers": {}} if scheme == "gs" and info.size < _LARGE else {}
    for _ in range(DOWNLOADS):
        with _explained(url):
            try:
                system.get_file(f"{bucket}/{name}", str(temporary), **options)
                problem = _difference(system, url, temporary, info)
            except Exception as error:
                if scheme == "gs" or not bucket_errors.is_dropped(error):  # gcsfs has repeated it
                    raise
                problem = bucket_errors.dropped(error, endpoint(url))
        if not problem:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.remove(path)
            os.replace(temporary, path)
            return info
        temporary.unlink(missing_ok=True)
        with _explained(url):
            current = _stat(system, scheme, f"{bucket}/{name}")
        if current is None:
            raise UserError(f"{url}: the object was deleted while it was downloaded")
        info = current
    raise UserError(f"{url}: {problem}, in each of {DOWNLOADS} downloads")


def send(path: pathlib.Path, url: str) -> None:
    """Uploads a file, in parts if it is large. GCS and S3 verify what they get.

    Raises:
      FileNotFoundError: There is no such file.
      UserError: The bucket cannot be written to.
    """
    scheme, bucket, name = _split(url, object_name=True)
    size = path.stat().st_size  # raises here, where a missing file is not taken for a bucket's
    verified = {"consistency": "md5"} if scheme == "gs" else {}
    system = _system(url)
    with _explained(url, writing=True):
        system.put_file(str(path), f"{bucket}/{name}", chunksize=_part(size), **verified)


def is_same(path: pathlib.Path, info: ObjectInfo) -> bool:
    """Whether a local file has the size and the MD5 of an object; False if that is unknown."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if status.st_size != info.size:
        return False
    if info.md5:
        return _md5_of(str(path), status.st_size, status.st_mtime_ns) == info.md5
    part = _part(info.size)
    return info.tag.endswith(f"-{-(-info.size // part)}") and info.tag == _parts_tag(path, part)


def _difference(system: Any, url: str, path: pathlib.Path, info: ObjectInfo) -> str:
    """What of a downloaded file is not as the bucket says, or ""."""
    size = path.stat().st_size
    if size != info.size:
        return f"{size:,} of {info.size:,} bytes arrived"
    if info.md5 and _md5(path) != info.md5 and not _is_encrypted(system, url):
        return "the content differs from the MD5 that the bucket states"
    return ""


def _is_encrypted(system: Any, url: str) -> bool:
    """Whether S3 encrypts an object with a key of the user's: its ETag is then not its MD5."""
    scheme, bucket, name = _split(url)
    if scheme != "s3":
        return False
    head = system.call_s3("head_object", Bucket=bucket, Key=name)
    encryption = head.get("ServerSideEncryption") or "AES256"
    return bool(head.get("SSECustomerAlgorithm")) or encryption != "AES256"


def _md5(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@functools.lru_cache(maxsize=4096)
def _md5_of(path: str, size: int, modified: int) -> str:
    return _md5(pathlib.Path(path))


def _parts_tag(path: pathlib.Path, part: int) -> str:
    """The ETag that S3 gives to an object that was uploaded in parts of `part` bytes."""
    digests = []
    with path.open("rb") as file:
        while data := file.read(part):
            digests.append(hashlib.md5(data, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _part(size: int) -> int:
    # GCS takes parts of multiples of 256 KiB.
    smallest = -(-size // _MAX_PARTS)
    return max(_PART, -(-smallest // 2**18) * 2**18)


def _put(url: str, data: bytes, expected: str) -> str | None:
    """Writes an object and returns its tag; None if it is not as expected.

    Args:
      url: The object.
      data: Its content.
      expected: "" for any state, `_ABSENT`, or the tag that the object must have.
    """
    scheme, bucket, name = _split(url, object_name=True)
    system = _system(url)
    write = _put_to_s3 if scheme == "s3" else _put_to_gcs
    with _explained(url, writing=True):
        try:
            return write(system, bucket, name, data, expected)
        except Exception as error:
            if not expected or not bucket_errors.is_conflict(error):
                raise
        # The request may have been repeated because the answer to the first one was lost.
        now = _stat(system, scheme, f"{bucket}/{name}")
        if now is None or now.size != len(data) or system.cat_file(f"{bucket}/{name}") != data:
            return None
        return now.tag


def _put_to_s3(system: Any, bucket: str, name: str, data: bytes, expected: str) -> str:
    condition = {}
    if expected:
        is_new = expected == _ABSENT
        condition = {"IfNoneMatch": "*"} if is_new else {"IfMatch": f'"{expected}"'}
    answer = system.call_s3("put_object", Bucket=bucket, Key=name, Body=data, **condition)
    return answer["ETag"].strip('"')


def _put_to_gcs(system: Any, bucket: str, name: str, data: bytes, expected: str) -> str:
    condition = {}
    if expected:
        condition["ifGenerationMatch"] = "0" if expected == _ABSENT else expected
    base = system.base.replace("/storage/v1/", "/upload/storage/v1/")
    answer = system.call(
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


def _stat(system: Any, scheme: str, path: str) -> ObjectInfo | None:
    """An object's info with one request; None if there is no such object."""
    bucket, _, name = path.partition("/")
    try:
        if scheme == "s3":
            head = system.call_s3("head_object", Bucket=bucket, Key=name)
            return _info(scheme, {"size": head["ContentLength"], "ETag": head["ETag"]})
        return _info(scheme, system.call("GET", "b/{}/o/{}", bucket, name, json_out=True))
    except FileNotFoundError:
        return None


def _check_bucket(system: Any, url: str) -> None:
    """Raises a `UserError` if there is no such bucket."""
    scheme, bucket, _ = _split(url)
    try:
        if scheme == "s3":
            system.call_s3("head_bucket", Bucket=bucket)
        else:
            # Reading the bucket's own metadata would be another right than that to its objects.
            system.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError as error:
        raise UserError(f"{url}: {bucket_errors.no_bucket(bucket, endpoint(url))}") from error


def _info(scheme: str, entry: Mapping[str, Any]) -> ObjectInfo:
    if scheme == "gs":
        md5 = base64.b64decode(entry.get("md5Hash") or "").hex()
        return ObjectInfo(int(entry["size"]), str(entry.get("generation", "")), md5)
    tag = str(entry.get("ETag", "")).strip('"')
    return ObjectInfo(int(entry["size"]), tag, tag if re.fullmatch("[0-9a-f]{32}", tag) else "")


def _split(url: str, *, object_name: bool = False) -> tuple[str, str, str]:
    """Scheme, bucket and name of a URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme not in _SCHEMES or not bucket:
        raise UserError(f"{url}: names no bucket, expected gs://BUCKET/NAME or s3://BUCKET/NAME")
    if object_name and not name.strip("/"):
        raise UserError(f"{url}: names a bucket, expected {url.rstrip('/')}/NAME")
    return _SCHEMES[scheme], bucket, name


def _system(url: str) -> Any:
    """The connection to GCS or S3; a new one where the environment has changed."""
    variables = tuple(sorted(item for item in os.environ.items() if _ENVIRONMENT.match(item[0])))
    with _explained(url):
        try:
            return _connection(_split(url)[0], variables, TIMEOUT, TRIES)
        except ImportError as error:
            raise UserError(
                f"{url}: buckets need the extra [remote]: pip install 'bloodjax[remote]' ({error})"
            ) from error


@functools.lru_cache(maxsize=8)
def _connection(
    scheme: str, variables: tuple[tuple[str, str], ...], timeout: float, tries: int
) -> Any:
    make = _file_system(scheme)
    # They log the errors that they raise, with tracebacks.
    for library in ("gcsfs", "s3fs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "max_pool_connections": 2 * PARALLEL,
            "retries": {"mode": "standard", "max_attempts": tries},
        }
        system = make(**options)
        system.retries = 2  # botocore repeats each of them
        return system
    import aiohttp  # what gcsfs sends requests with

    options["requests_timeout"] = aiohttp.ClientTimeout(
        total=None, sock_connect=timeout, sock_read=timeout
    )
    known = dict(variables)
    if known.get("STORAGE_EMULATOR_HOST") and not known.get("GOOGLE_APPLICATION_CREDENTIALS"):
        options["token"] = "anon"  # would ask Google's metadata server, for seconds
    return make(**options)


def _file_system(scheme: str) -> Callable[..., Any]:
    """The class of fsspec's file system: an extra, and slow to import."""
    import fsspec

    # By default gcsfs asks a second endpoint, over gRPC, whether a bucket is a zonal one: for a
    # minute where that is not reached, as behind a firewall. Who has zonal buckets sets "true".
    zonal = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
    if scheme == "gs" and os.environ.setdefault(zonal, "false") == "false":
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return fsspec.get_filesystem_class(scheme)


@contextlib.contextmanager
def _explained(url: str, *, writing: bool = False) -> Iterator[None]:
    """Turns every failure of a library into a `UserError` of one line that names `url`."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if files.disk_full_reason(error) is not None:
            raise
        scheme, bucket, _ = _split(url)
        where = endpoint(url)
        # What is missing when an object is written is the bucket.
        if writing and bucket_errors.is_missing(error):
            reason = bucket_errors.no_bucket(bucket, where)
        else:
            reason = bucket_errors.reason(error, scheme, bucket, where, TIMEOUT)
        raise UserError(f"{url}: {reason}") from error
