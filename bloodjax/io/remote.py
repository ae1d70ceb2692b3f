"""Objects in buckets: gs://BUCKET/NAME and s3://BUCKET/NAME. The one door to fsspec.

A bucket has no folders. An object's name contains slashes, and `gs://BUCKET/cells` stands for all
objects whose names start with `cells/`. A URL here is the name of an object or of such a folder.

Objects that are read are copied to a cache on the local disk (`local_copy`), because images, zips
and shards are read at random positions. The endpoint and the credentials are the ones that the
libraries of Google and Amazon look for: `AWS_ENDPOINT_URL`, `STORAGE_EMULATOR_HOST`,
`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS` and so on. See docs/buckets.md.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from bloodjax import distributed
from bloodjax.errors import UserError
from bloodjax.io import files

# Environment variable that names the folder of the cache.
CACHE = "BLOODJAX_CACHE"
# Seconds without an answer, or without a byte of one, after which a request fails.
TIMEOUT = 30.0
# Downloads of one object before it counts as damaged.
_DOWNLOADS = 3
# Requests at a time.
_PARALLEL = 16
# Bytes of each part of an object that is uploaded in parts; S3 allows 10,000 parts.
_PART = 64 * 2**20
_MAX_PARTS = 10_000

_SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3"}
_LIBRARY = {"gs": "gcsfs", "s3": "s3fs"}
_WHERE_FROM = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# Variables on which the connection depends.
_ENVIRONMENT = re.compile(
    "AWS_|GOOGLE_|GCE_|CLOUDSDK_|FSSPEC_|STORAGE_EMULATOR_HOST$|NO_GCE_CHECK$|HOME$"
)
_INDEX_SECONDS = 5.0

_log = logging.getLogger("bloodjax")
_counter = itertools.count()


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


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is one in a bucket: gs://, gcs:// or s3://."""
    scheme, separator, _ = str(path).partition("://")
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
    """A URL below another."""
    return "/".join((url.rstrip("/"), *names))


def local(path: str) -> str:
    """A path to read from: that of the local copy if `path` is remote, else `path` itself.

    A process copies each URL once. It does not see what is written to the bucket later.

    Raises:
      UserError: The URL cannot be copied; the message names it.
    """
    check(path)
    if not is_remote(path):
        return path
    url = normalised(path)
    with _copied_lock:
        if url not in _copied:
            _copied[url] = str(local_copy(url))
        return _copied[url]


_copied: dict[str, str] = {}
_copied_lock = threading.Lock()


def cache_folder() -> pathlib.Path:
    """The folder of the cache: $BLOODJAX_CACHE, by default ~/.cache/bloodjax."""
    return pathlib.Path(os.path.expanduser(os.environ.get(CACHE) or "~/.cache/bloodjax"))


def local_copy(url: str, names: Collection[str] | None = None) -> pathlib.Path:
    """Copies an object, or all objects below a URL, to the cache, and returns the path there.

    Only objects that are new, or whose size or tag has changed, are downloaded, `_PARALLEL` at a
    time. Files of objects that no longer exist are removed. The size and, where the bucket states
    it, the MD5 of each object is verified. A file appears under its name when it is complete.
    Processes of one host share the copy: one downloads, the others wait for it.

    Args:
      url: An object or a folder. If there are both, the object.
      names: Objects of the folder to copy, relative to `url`; by default all. Names that do not
        exist are skipped.

    Returns:
      A file or a folder with the last name of `url`.

    Raises:
      UserError: There is no such object; it is damaged; or the bucket cannot be read.
    """
    url = normalised(url)
    found = list_files(url)
    if not found:
        raise UserError(f"{url}: {_missing(url)}")
    if names is not None and "" not in found:
        wanted = set(names)
        found = {name: info for name, info in found.items() if name in wanted}
    key = hashlib.blake2b(repr((_endpoint(url), url)).encode(), digest_size=10).hexdigest()
    root = cache_folder() / "remote" / key
    files.make_folder(root)
    with _locked(root, url):
        return _Copy(root, url).update(found, prune=names is None)


def local_copies(urls: Sequence[str]) -> list[pathlib.Path]:
    """Copies objects to the cache; objects of one folder at a time, so that it is listed once.

    Returns:
      The path of each, in order. The file of an object that does not exist is missing.

    Raises:
      UserError: A bucket cannot be read, or an object is damaged.
    """
    names: dict[str, list[str]] = {}
    for url in map(normalised, urls):
        folder, _, name = url.rpartition("/")
        names.setdefault(folder, []).append(name)
    copies = {folder: local_copy(folder, names[folder]) for folder in names}
    return [
        copies[folder] / name
        for folder, _, name in (normalised(url).rpartition("/") for url in urls)
    ]


def list_files(url: str) -> dict[str, ObjectInfo]:
    """The objects below a URL by their names relative to it; {"": info} if it is an object.

    Raises:
      UserError: The bucket cannot be read, or the name of an object cannot be one of a file.
    """
    scheme, bucket, name = _split(url)
    system, path = _system(scheme), f"{bucket}/{name}".rstrip("/")
    with _explained(url):
        if name and not url.endswith("/"):
            info = _stat(system, scheme, path)
            if info is not None:
                return {"": info}
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            if _has_bucket(system, scheme, bucket):
                return {}
            raise
        if not found and not _has_bucket(system, scheme, bucket):
            raise UserError(f"{url}: no bucket {bucket} at {_endpoint(url)}")
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
    with _explained(url):
        found = _stat(_system(scheme), scheme, f"{bucket}/{name}")
        if found is None and not _has_bucket(_system(scheme), scheme, bucket):
            raise UserError(f"{url}: no bucket {bucket} at {_endpoint(url)}")
    return found


def read_bytes(url: str) -> bytes:
    """The content of an object.

    Raises:
      UserError: There is no such object, or the bucket cannot be read.
    """
    scheme, bucket, name = _split(url, object_name=True)
    with _explained(url):
        return _system(scheme).cat_file(f"{bucket}/{name}")


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
    return _put(url, data, "absent")


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


def download(url: str, folder: pathlib.Path, names: Sequence[str] | None = None) -> list[str]:
    """Downloads the objects below a URL to a folder of the caller's.

    A file whose size and MD5 are the object's is left. Files that have no object are left too.

    Args:
      url: A folder. An object is downloaded to `folder` under its own name.
      folder: Where to write; created if missing.
      names: Objects to download, relative to `url`; by default all.

    Returns:
      The names of the objects that were downloaded.

    Raises:
      UserError: There is no such object; it is damaged; or the bucket cannot be read.
    """
    found = list_files(url)
    if not found:
        raise UserError(f"{url}: {_missing(url)}")
    if "" in found:
        url, _, name = normalised(url).rpartition("/")
        found = {name: found[""]}
    for name in names or ():
        if name not in found:
            raise UserError(f"{join(url, name)}: no such object")
    files.make_folder(folder)
    wanted = {name: found[name] for name in (found if names is None else names)}
    changed = [n for n, info in wanted.items() if not _same(folder / n, info, n)]
    partial = folder / ".partial"
    partial.mkdir(exist_ok=True)
    try:
        _in_threads(
            lambda name: _fetch(join(url, name), wanted[name], folder / name, partial), changed
        )
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return changed


def upload(
    path: pathlib.Path,
    url: str,
    names: Sequence[str] | None = None,
    *,
    last: Sequence[str] = (),
) -> list[str]:
    """Uploads a file, or the files of a folder, that differ from the objects in the bucket.

    A file is the same if its size and MD5 are the object's.

    Args:
      path: A file, which becomes the object `url`, or a folder.
      url: The object or the folder.
      names: Files of the folder to upload, relative to it; by default all, at any depth.
      last: Files to upload one after another, in this order, when all others are there.

    Returns:
      The names of the files that were uploaded; "" for a file.

    Raises:
      FileNotFoundError: A file is missing.
      UserError: The bucket cannot be written to.
    """
    if path.is_file():
        known = stat(url)
        if known is not None and _same(path, known, path.name):
            return []
        _send(path, url)
        return [""]
    if names is None:
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*"))]
        names = [name for name in names if (path / name).is_file()]
    known_files = list_files(url.rstrip("/") + "/")
    changed = [
        name
        for name in names
        if name not in known_files or not _same(path / name, known_files[name], name)
    ]
    late = [name for name in last if name in changed]
    early = [name for name in changed if name not in set(late)]
    _in_threads(lambda name: _send(path / name, join(url, name)), early)
    for name in late:
        _send(path / name, join(url, name))
    return early + late


def delete(url: str, *, first: Sequence[str] = ()) -> None:
    """Deletes an object, or all objects below a URL. What does not exist is no error.

    Args:
      url: An object or a folder.
      first: Names relative to `url` to delete before the others, one after another.

    Raises:
      UserError: The bucket cannot be written to.
    """
    found = list_files(url)
    early = [name for name in first if name in found]
    for name in early:
        _remove(join(url, name) if name else url)
    rest = [name for name in found if name not in set(early)]
    _in_threads(lambda name: _remove(join(url, name) if name else url), rest)


class _Copy:
    """The local copy of one URL: `data/NAME`, and what each file is a copy of, in `index.json`."""

    def __init__(self, root: pathlib.Path, url: str):
        self._url = url
        self._index_file = root / "index.json"
        self._partial = root / "partial"
        self._target = root / "data" / (url.rpartition("/")[2] or "bucket")
        self._index = self._read_index()
        self._written = time.monotonic()
        self._lock = threading.Lock()

    def update(self, found: Mapping[str, ObjectInfo], *, prune: bool) -> pathlib.Path:
        """Downloads what differs from `found`, removes what is not in it if `prune`."""
        is_object = "" in found
        if self._target.exists() and self._target.is_dir() == is_object:
            _remove_tree(self._target)
        changed = [name for name, info in found.items() if not self._is_current(name, info)]
        if not is_object:
            self._target.mkdir(parents=True, exist_ok=True)
        if prune:
            self._prune(found)
        if not changed:
            return self._target
        self._say(found, changed)
        _remove_tree(self._partial)
        self._partial.mkdir()
        try:
            _in_threads(lambda name: self._download(name, found[name]), changed)
        finally:
            self._write_index()
            _remove_tree(self._partial)
        return self._target

    def _path(self, name: str) -> pathlib.Path:
        return self._target / name if name else self._target

    def _download(self, name: str, info: ObjectInfo) -> None:
        path = self._path(name)
        url = join(self._url, name) if name else self._url
        info = _fetch(url, info, path, self._partial)
        with self._lock:
            self._index[name] = (info.size, info.tag, path.stat().st_mtime_ns)
            if time.monotonic() - self._written > _INDEX_SECONDS:
                self._write_index()

    def _is_current(self, name: str, info: ObjectInfo) -> bool:
        try:
            status = self._path(name).stat()
        except OSError:
            return False
        known = (info.size, info.tag, status.st_mtime_ns)
        return status.st_size == info.size and self._index.get(name) == known

    def _prune(self, found: Mapping[str, ObjectInfo]) -> None:
        self._index = {name: entry for name, entry in self._index.items() if name in found}
        if "" in found:
            return
        for where, folders, names in os.walk(self._target, topdown=False):
            here = pathlib.Path(where)
            for name in names:
                if (here / name).relative_to(self._target).as_posix() not in found:
                    (here / name).unlink(missing_ok=True)
            for name in folders:
                with contextlib.suppress(OSError):  # it is not empty
                    (here / name).rmdir()

    def _say(self, found: Mapping[str, ObjectInfo], changed: Sequence[str]) -> None:
        size = sum(found[name].size for name in changed) / 1e6
        objects = "object" if len(changed) == 1 else "objects"
        if distributed.is_primary():
            _log.info(
                f"{self._url}: copying {len(changed):,} {objects} ({size:,.1f} MB) to the cache"
            )

    def _read_index(self) -> dict[str, tuple[int, str, int]]:
        try:
            stored = json.loads(self._index_file.read_text("utf-8"))
            return {name: (int(a), str(b), int(c)) for name, (a, b, c) in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # missing or damaged: everything is downloaded again

    def _write_index(self) -> None:
        # `files.atomic_write` writes in the primary process only; each host has a cache.
        temporary = self._index_file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._index), "utf-8")
        os.replace(temporary, self._index_file)
        self._written = time.monotonic()


@contextlib.contextmanager
def _locked(root: pathlib.Path, url: str) -> Iterator[None]:
    """Keeps other processes of this host from updating the same copy at the same time."""
    with (root / "lock").open("a") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info(f"{url}: waiting for another process that copies it")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            # Files are renamed when they are complete, so that two processes only do the work
            # twice.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield


def _fetch(url: str, info: ObjectInfo, path: pathlib.Path, partial: pathlib.Path) -> ObjectInfo:
    """Downloads and verifies one object; returns what it was when it was downloaded."""
    scheme, bucket, name = _split(url)
    system = _system(scheme)
    problem = ""
    for _ in range(_DOWNLOADS):
        temporary = partial / f"{os.getpid()}-{next(_counter)}"
        with _explained(url):
            system.get_file(f"{bucket}/{name}", str(temporary))
            problem = _difference(system, scheme, url, temporary, info)
            if not problem:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir() and not path.is_symlink():
                    _remove_tree(path)
                os.replace(temporary, path)
                return info
            temporary.unlink(missing_ok=True)
            current = _stat(system, scheme, f"{bucket}/{name}")  # it may have been replaced
            if current is None:
                raise UserError(f"{url}: the object was deleted while it was downloaded")
            info = current
    raise UserError(
        f"{url}: {problem} in {_DOWNLOADS} downloads; expected an object that is intact"
    )


def _difference(system: Any, scheme: str, url: str, path: pathlib.Path, info: ObjectInfo) -> str:
    """What of a downloaded file is not as the bucket says, or ""."""
    size = path.stat().st_size
    if size != info.size:
        return f"{size:,} of {info.size:,} bytes arrived"
    if info.md5 and _md5(path) != info.md5 and not (scheme == "s3" and _encrypted(system, url)):
        return "the content differs from the MD5 that the bucket states"
    return ""


def _encrypted(system: Any, url: str) -> bool:
    """Whether S3 encrypts an object with a key of the user's: its ETag is then not its MD5."""
    _, bucket, name = _split(url)
    head = system.call_s3("head_object", Bucket=bucket, Key=name)
    return bool(
        head.get("SSECustomerAlgorithm")
        or head.get("ServerSideEncryption") not in (None, "", "AES256")
    )


def _same(path: pathlib.Path, info: ObjectInfo, name: str) -> bool:
    """Whether a local file has the content of an object, as far as the bucket states it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if status.st_size != info.size:
        return False
    if info.md5:
        return _md5_of(str(path), status.st_size, status.st_mtime_ns) == info.md5
    if info.tag.endswith(f"-{-(-info.size // _part(info.size))}"):
        return _etag_of_parts(path, _part(info.size)) == info.tag
    return False


def _md5(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@functools.lru_cache(maxsize=4096)
def _md5_of(path: str, size: int, modified: int) -> str:
    return _md5(pathlib.Path(path))


def _etag_of_parts(path: pathlib.Path, part: int) -> str:
    """The ETag that S3 gives to an object that was uploaded in parts of `part` bytes."""
    digests = []
    with path.open("rb") as file:
        while data := file.read(part):
            digests.append(hashlib.md5(data, usedforsecurity=False).digest())
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(digests)}"


def _part(size: int) -> int:
    # GCS takes parts of multiples of 256 KiB.
    smallest = -(-size // _MAX_PARTS)
    return max(_PART, -(-smallest // 2**18) * 2**18)


def _send(path: pathlib.Path, url: str) -> None:
    scheme, bucket, name = _split(url, object_name=True)
    size = path.stat().st_size  # raises for a missing file, which is no mistake of the bucket
    verified = {"consistency": "md5"} if scheme == "gs" else {}
    with _explained(url):
        _system(scheme).put_file(str(path), f"{bucket}/{name}", chunksize=_part(size), **verified)


def _remove(url: str) -> None:
    scheme, bucket, name = _split(url, object_name=True)
    with _explained(url), contextlib.suppress(FileNotFoundError):
        _system(scheme).rm_file(f"{bucket}/{name}")


def _put(url: str, data: bytes, expected: str) -> str | None:
    """Writes an object and returns its tag; None if it is not as expected.

    Args:
      url: The object.
      data: Its content.
      expected: "" for any state, "absent", or the tag that the object must have.
    """
    scheme, bucket, name = _split(url, object_name=True)
    system = _system(scheme)
    with _explained(url):
        try:
            if scheme == "s3":
                condition = {}
                if expected:
                    absent = expected == "absent"
                    condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": f'"{expected}"'}
                answer = system.call_s3(
                    "put_object", Bucket=bucket, Key=name, Body=data, **condition
                )
                return answer["ETag"].strip('"')
            condition = {}
            if expected:
                condition["ifGenerationMatch"] = "0" if expected == "absent" else expected
            answer = system.call(
                "POST",
                f"{system.base.replace('/storage/v1/', '/upload/storage/v1/')}b/"
                f"{urllib.parse.quote(bucket, safe='')}/o",
                uploadType="media",
                name=name,
                headers={"Content-Type": "application/octet-stream"},
                data=data,
                json_out=True,
                **condition,
            )
            return str(answer["generation"])
        except Exception as error:
            if not expected or not _is_conflict(error):
                raise
            # The request may have been repeated because the answer to the first one was lost.
            now = _stat(system, scheme, f"{bucket}/{name}")
            if now is None or now.size != len(data):
                return None
            is_ours = system.cat_file(f"{bucket}/{name}") == data
            return now.tag if is_ours else None


def _is_conflict(error: BaseException) -> bool:
    """Whether a bucket refused a write because the object is not as expected."""
    for cause in _causes(error):
        if isinstance(cause, FileExistsError):
            return True
        code = _code(cause)
        if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"):
            return True
    return False


def _stat(system: Any, scheme: str, path: str) -> ObjectInfo | None:
    """An object's info with one request; None if there is no such object."""
    bucket, _, name = path.partition("/")
    try:
        if scheme == "s3":
            head = system.call_s3("head_object", Bucket=bucket, Key=name)
            return _info(scheme, {"size": head["ContentLength"], "ETag": head["ETag"]})
        entry = system.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        return _info(scheme, {**entry, "size": int(entry["size"])})
    except FileNotFoundError:
        return None


def _has_bucket(system: Any, scheme: str, bucket: str) -> bool:
    try:
        if scheme == "s3":
            system.call_s3("head_bucket", Bucket=bucket)
        else:
            # Reading the bucket's own metadata is a right of its own; listing objects is not.
            system.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        return False
    return True


def _info(scheme: str, entry: Mapping[str, Any]) -> ObjectInfo:
    if scheme == "gs":
        digest = entry.get("md5Hash") or ""
        md5 = base64.b64decode(digest).hex() if digest else ""
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


def _endpoint(url: str) -> str:
    """Where requests go to, as the environment says."""
    if _split(url)[0] == "gs":
        return os.environ.get("STORAGE_EMULATOR_HOST") or "storage.googleapis.com"
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(filter(None, map(os.environ.get, variables)), "Amazon S3")


def _system(scheme: str) -> Any:
    """The connection to GCS or S3; a new one where the environment has changed."""
    variables = tuple(sorted(item for item in os.environ.items() if _ENVIRONMENT.match(item[0])))
    return _connection(scheme, variables, TIMEOUT)


@functools.lru_cache(maxsize=8)
def _connection(scheme: str, variables: tuple[tuple[str, str], ...], timeout: float) -> Any:
    try:
        make = _file_system(scheme)
    except ImportError as error:
        raise UserError(
            f"{scheme}://: reading and writing buckets requires {_LIBRARY[scheme]}: pip install "
            "'bloodjax[remote]'"
        ) from error
    # They log the errors that they raise, with tracebacks.
    for library in ("gcsfs", "s3fs", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    with _explained(f"{scheme}://"):
        if scheme == "gs":
            import aiohttp  # what gcsfs sends requests with

            options["requests_timeout"] = aiohttp.ClientTimeout(
                total=None, sock_connect=timeout, sock_read=timeout
            )
            environment = dict(variables)
            if environment.get("STORAGE_EMULATOR_HOST") and not environment.get(
                "GOOGLE_APPLICATION_CREDENTIALS"
            ):
                options["token"] = "anon"  # would ask Google's metadata server, for seconds
        else:
            options["config_kwargs"] = {
                "connect_timeout": timeout,
                "read_timeout": timeout,
                "max_pool_connections": 2 * _PARALLEL,
                "retries": {"mode": "standard", "max_attempts": 3},
            }
        system = make(**options)
    if scheme == "s3":
        system.retries = 2  # botocore repeats each of them
    return system


def _file_system(scheme: str) -> Callable[..., Any]:
    """The class of fsspec's file system; slow to import, and an extra."""
    import fsspec

    # By default gcsfs asks a second endpoint, over gRPC, whether a bucket is a zonal one: for a
    # minute where that is not reached, as behind a firewall. Who has zonal buckets sets "true".
    if (
        scheme == "gs"
        and os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false") == "false"
    ):
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return fsspec.get_filesystem_class(scheme)


def _in_threads(function: Callable[[str], Any], names: Sequence[str]) -> None:
    """Calls a function for each name, `_PARALLEL` at a time; the first error ends all."""
    if len(names) == 1:
        function(names[0])
        return
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            for _ in pool.map(function, names):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _remove_tree(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns every failure of a library into a `UserError` of one line that names `url`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = files.disk_full_reason(error)
        if full is not None:
            raise UserError(
                f"{cache_folder()}: {full}; expected room for {url} (the environment variable "
                f"{CACHE} names another folder)"
            ) from error
        raise UserError(f"{url}: {_reason(error, url)}") from error


def _reason(error: BaseException, url: str) -> str:
    """What went wrong, and what was expected instead.

    The libraries pass on the exceptions of the HTTP clients beneath them, which differ between
    versions, so classes are recognised by their names.
    """
    scheme, _, rest = url.partition("://")
    bucket, endpoint = rest.partition("/")[0], _endpoint(url) if rest else scheme
    causes = list(_causes(error))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    codes = {_code(cause) for cause in causes}
    text = " ".join(str(causes[0]).split())[:200] or type(causes[0]).__name__
    if "NoSuchBucket" in codes or "bucket does not exist" in text:
        return f"no bucket {bucket} at {endpoint}"
    if (
        kinds
        & {
            *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
            *("CredentialRetrievalError", "TokenRetrievalError", "DefaultCredentialsError"),
            *(
                "RefreshError",
                "NonRetryableError",
                "SSOTokenLoadError",
                "UnauthorizedSSOTokenError",
            ),
        }
        or "401" in codes
    ):
        return f"no valid credentials ({text}), expected {_WHERE_FROM[scheme]}"
    if "PermissionError" in kinds or "403" in codes or text.startswith("Forbidden"):
        return f"{endpoint} refuses it ({text}), expected credentials with the right to it"
    if "FileNotFoundError" in kinds or "404" in codes:
        return _missing(url)
    if kinds & {"TimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "FSTimeoutError"}:
        return f"no answer from {endpoint} for {TIMEOUT:g} s, several times; try again"
    if kinds & {
        *("EndpointConnectionError", "ClientConnectorError", "ClientConnectionError"),
        *("ConnectionError", "HTTPClientError", "ClientPayloadError", "IncompleteRead"),
        *("ServerDisconnectedError", "ConnectionClosedError"),
    }:
        return f"the connection to {endpoint} failed, several times ({text})"
    return f"{endpoint} failed ({type(error).__name__}: {text})"


def _missing(url: str) -> str:
    return "no such object or folder in the bucket"


def _code(error: BaseException) -> str:
    """The code of a bucket's answer, such as "NoSuchBucket" or "404"; "" if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "code", "") or getattr(error, "status", "") or "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
