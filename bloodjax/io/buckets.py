"""Reads, writes, lists and deletes objects in buckets of GCS and S3."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib

from bloodjax.errors import UserError
from bloodjax.io import bucket_errors, bucket_urls, files
from bloodjax.io.bucket_connection import explained, file_system
from bloodjax.io.bucket_services import ABSENT, S3, Gcs, ObjectInfo, service_of

# Downloads of one object before it counts as damaged.
DOWNLOADS = 3
# Bytes of each part of an object that is uploaded in parts; S3 allows 10,000 parts.
_PART = 64 * 2**20
_MAX_PARTS = 10_000


def list_files(url: str) -> dict[str, ObjectInfo]:
    """The objects below a URL by their names relative to it; {"": info} if it is an object.

    Args:
      url: An object or a folder. If there are both, the object, unless `url` ends in a slash.

    Raises:
      UserError: The bucket cannot be read, or the name of an object cannot be one of a file.
    """
    _, bucket, name = bucket_urls.split(url)
    service, path = service_of(url), f"{bucket}/{name}".rstrip("/")
    with explained(url):
        if name and not url.endswith("/"):
            info = _stat(service, bucket, name)
            if info is not None:
                return {"": info}
        try:
            found = service.system.find(path, detail=True)
        except FileNotFoundError:
            found = {}
        if not found:
            _check_bucket(service, bucket, url)
    listed = {}
    for full, entry in found.items():
        relative = full[len(path) + 1 :]
        if not relative or full.endswith("/") or entry.get("type") == "directory":
            continue  # an object that only stands for the folder
        if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
            raise UserError(f"{url}: the object {relative!r} cannot be a file, expected a path")
        listed[relative] = service.info(entry)
    return listed


def stat(url: str) -> ObjectInfo | None:
    """Size and tag of an object; None if there is none.

    Raises:
      UserError: The bucket cannot be read.
    """
    _, bucket, name = bucket_urls.split_object(url)
    service = service_of(url)
    with explained(url):
        found = _stat(service, bucket, name)
        if found is None:
            _check_bucket(service, bucket, url)
    return found


def read_bytes(url: str) -> bytes:
    """The content of an object.

    Raises:
      UserError: There is no such object, or the bucket cannot be read.
    """
    _, bucket, name = bucket_urls.split_object(url)
    system = file_system(url)
    with explained(url):
        return system.cat_file(f"{bucket}/{name}")


def write_bytes(url: str, data: bytes) -> str:
    """Writes a small object, or replaces it, and returns its tag.

    Raises:
      UserError: The bucket cannot be written to.
    """
    tag = _put(url, data, None)
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
    return _put(url, data, ABSENT)


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
    _, bucket, name = bucket_urls.split_object(url)
    system = file_system(url)
    with explained(url), contextlib.suppress(FileNotFoundError):
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
    _, bucket, name = bucket_urls.split_object(url)
    service, problem = service_of(url), ""
    options = service.download_options(info.size)
    for _ in range(DOWNLOADS):
        with explained(url):
            try:
                service.system.get_file(f"{bucket}/{name}", str(temporary), **options)
                problem = _difference(temporary, info, service, bucket, name)
            except Exception as error:
                if service.repeats_downloads or not bucket_errors.is_dropped(error):
                    raise
                problem = bucket_errors.dropped(error, bucket_urls.endpoint(url))
        if not problem:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                files.remove(path)
            os.replace(temporary, path)  # a file is there at any time for those who read it
            return info
        temporary.unlink(missing_ok=True)
        with explained(url):
            current = _stat(service, bucket, name)
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
    _, bucket, name = bucket_urls.split_object(url)
    # Outside of `explained`, which would take a missing file for a missing bucket.
    chunk = _part(path.stat().st_size)
    service = service_of(url)
    with explained(url, writing=True):
        service.system.put_file(
            str(path), f"{bucket}/{name}", chunksize=chunk, **service.upload_options()
        )


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


def _difference(
    path: pathlib.Path, info: ObjectInfo, service: S3 | Gcs, bucket: str, name: str
) -> str:
    """In what a downloaded file differs from what the bucket states, or ""."""
    size = path.stat().st_size
    if size != info.size:
        return f"{size:,} of {info.size:,} bytes arrived"
    if info.md5 and _md5(path) != info.md5 and service.states_md5(bucket, name):
        return "the content differs from the MD5 that the bucket states"
    return ""


def _md5(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@functools.lru_cache(maxsize=4096)
def _md5_of(path: str, size: int, modified: int) -> str:
    """The MD5 of a file, which is computed once for each size and time of change."""
    return _md5(pathlib.Path(path))


def _parts_tag(path: pathlib.Path, part: int) -> str:
    """The ETag that S3 gives to an object that was uploaded in parts of `part` bytes."""
    digests = []
    with path.open("rb") as file:
        while data := file.read(part):
            digests.append(hashlib.md5(data, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _part(size: int) -> int:
    """Bytes of each part of an object of `size` bytes, a multiple of the 256 KiB of GCS."""
    smallest = -(-size // _MAX_PARTS)
    return max(_PART, -(-smallest // 2**18) * 2**18)


def _put(url: str, data: bytes, expected: str | None) -> str | None:
    """Writes an object and returns its tag; None if its tag is not the expected one.

    Args:
      url: The object.
      data: Its content.
      expected: The tag that the object must have now, or `ABSENT`; None for any state.
    """
    _, bucket, name = bucket_urls.split_object(url)
    service = service_of(url)
    with explained(url, writing=True):
        try:
            return service.put(bucket, name, data, expected)
        except Exception as error:
            if expected is None or not bucket_errors.is_conflict(error):
                raise
        # The request may have been repeated because the answer to the first one was lost.
        now = _stat(service, bucket, name)
        if now is None or now.size != len(data):
            return None
        return now.tag if service.system.cat_file(f"{bucket}/{name}") == data else None


def _stat(service: S3 | Gcs, bucket: str, name: str) -> ObjectInfo | None:
    """What the bucket states of an object; None if there is no such object."""
    try:
        return service.stat(bucket, name)
    except FileNotFoundError:
        return None


def _check_bucket(service: S3 | Gcs, bucket: str, url: str) -> None:
    """Raises a `UserError` if there is no such bucket."""
    try:
        service.check_bucket(bucket)
    except FileNotFoundError as error:
        endpoint = bucket_urls.endpoint(url)
        raise UserError(f"{url}: {bucket_errors.no_bucket(bucket, endpoint)}") from error
