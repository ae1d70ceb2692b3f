"""Copies of what buckets have, in a cache on the local disk, and uploads.

Objects that are read are copied to a cache, because images, zips and shards are read at random
positions: `local` for a path that a user gives, `local_copy` where the newest state matters. See
docs/buckets.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from bloodjax import distributed
from bloodjax.errors import UserError
from bloodjax.io import bucket_connection, bucket_errors, buckets, files, message_urls
from bloodjax.io.bucket_services import ObjectInfo
from bloodjax.io.bucket_urls import check, endpoint, is_remote, join, normalised
from bloodjax.io.buckets import list_files, stat

# Environment variable that names the folder of the cache.
CACHE = "BLOODJAX_CACHE"
_INDEX_SECONDS = 5.0
_DAY = 86400.0

_log = logging.getLogger("bloodjax")
_counter = itertools.count()
# What `local` has copied in this process: URL -> path.
_copied: dict[str, str] = {}
_copied_lock = threading.Lock()


def local(path: str) -> str:
    """A path to read from: that of the local copy if `path` is remote, else `path` itself.

    A process copies each URL once. It does not see what is written to the bucket later. Messages
    name the URL (`message_urls`).

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
            message_urls.add(_copied[url], url)
        return _copied[url]


def cache_folder() -> pathlib.Path:
    """The folder of the cache: $BLOODJAX_CACHE, by default ~/.cache/bloodjax."""
    return pathlib.Path(os.path.expanduser(os.environ.get(CACHE) or "~/.cache/bloodjax"))


def local_copy(url: str, names: Collection[str] | None = None) -> pathlib.Path:
    """Copies an object, or all objects below a URL, to the cache, and returns the path there.

    Only objects that are new, or whose size or tag has changed, are downloaded, several at a time.
    Files of objects that no longer exist are removed. The size and, where the bucket states it, the
    MD5 of each object is verified. A file appears under its name when it is complete. Processes of
    one host share the copy: one downloads, the others wait for it.

    Args:
      url: An object or a folder. If there are both, the object, unless `url` ends in a slash.
      names: Objects of the folder to copy, relative to `url`; by default all. Names that do not
        exist are skipped.

    Returns:
      A file or a folder with the last name of `url`.

    Raises:
      UserError: There is no such object; it is damaged; or the bucket cannot be read.
    """
    found = list_files(url)
    if not found:
        raise UserError(f"{url}: {bucket_errors.MISSING}")
    if names is not None and "" not in found:
        wanted = set(names)
        found = {name: info for name, info in found.items() if name in wanted}
    _check_names(url, found)
    url = normalised(url)
    key = hashlib.blake2b(repr((endpoint(url), url)).encode(), digest_size=10).hexdigest()
    root = cache_folder() / "remote" / key
    files.make_folder(root)
    try:
        with _locked(root, url):
            return _Copy(root, url).update(found, prune=names is None)
    except OSError as error:
        raise UserError(
            f"{url}: cannot be copied to {root} ({error.strerror or error}), expected room and "
            f"leave to write there; the environment variable {CACHE} names another cache"
        ) from error


def local_copies(urls: Sequence[str]) -> list[pathlib.Path]:
    """Copies objects to the cache. Each folder that they are in is listed once.

    Returns:
      The path of each, in order. The file of an object that does not exist is missing.

    Raises:
      UserError: A bucket cannot be read, or an object is damaged.
    """
    parts = [normalised(url).rpartition("/") for url in urls]
    names: dict[str, list[str]] = {}
    for folder, _, name in parts:
        names.setdefault(folder, []).append(name)
    copies = {folder: local_copy(f"{folder}/", names[folder]) for folder in names}
    return [copies[folder] / name for folder, _, name in parts]


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
        raise UserError(f"{url}: {bucket_errors.MISSING}")
    if "" in found:
        url, _, name = normalised(url).rpartition("/")
        found = {name: found[""]}
    _check_names(url, found)
    for name in names or ():
        if name not in found:
            raise UserError(f"{join(url, name)}: {bucket_errors.MISSING}")
    files.make_folder(folder)
    wanted = {name: found[name] for name in (found if names is None else names)}
    changed = [name for name, info in wanted.items() if not buckets.is_same(folder / name, info)]
    with _partial(folder / f".partial-{os.getpid()}-{next(_counter)}") as partial:
        _in_threads(
            lambda name: buckets.fetch(
                join(url, name), wanted[name], folder / name, _temporary(partial)
            ),
            changed,
        )
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
        if known is not None and buckets.is_same(path, known):
            return []
        buckets.send(path, url)
        return [""]
    if names is None:
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*"))]
        names = [name for name in names if (path / name).is_file()]
    there = _existing(url, names)
    changed = [
        name for name in names if name not in there or not buckets.is_same(path / name, there[name])
    ]
    late = [name for name in last if name in changed]
    early = [name for name in changed if name not in late]
    _in_threads(lambda name: buckets.send(path / name, join(url, name)), early)
    for name in late:
        buckets.send(path / name, join(url, name))
    return early + late


def _existing(url: str, names: Sequence[str]) -> dict[str, ObjectInfo]:
    """The objects of some names below a URL, and perhaps others.

    What else is below `url` is not listed: it may be a whole bucket, with names that no file has.
    """
    requests = {"".join(name.partition("/")[:2]) for name in names}  # a file, or "folder/"
    if len(requests) > bucket_connection.PARALLEL:
        return list_files(url.rstrip("/") + "/")
    found: dict[str, ObjectInfo] = {}

    def look(name: str) -> None:
        if name.endswith("/"):
            below = list_files(join(url, name))
            found.update({name + relative: info for relative, info in below.items()})
        elif (info := stat(join(url, name))) is not None:
            found[name] = info

    _in_threads(look, sorted(requests))
    return found


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
        buckets.remove(join(url, name))
    rest = [name for name in found if name not in early]
    _in_threads(lambda name: buckets.remove(join(url, name)), rest)


def _check_names(url: str, found: Collection[str]) -> None:
    """Refuses an object whose name is also that of a folder of objects."""
    for name in found:
        for i, character in enumerate(name):
            if character == "/" and name[:i] in found:
                raise UserError(
                    f"{url}: the objects {name[:i]} and {name} cannot be a file and a folder of "
                    "one name, expected one of them"
                )


class _Copy:
    """The local copy of one URL: `data/NAME`, and what each file is a copy of, in `index.json`."""

    def __init__(self, root: pathlib.Path, url: str):
        self._url = url
        self._index_file = root / "index.json"
        self._partial = root / f"partial-{os.getpid()}-{next(_counter)}"
        self._target = root / "data" / url.rpartition("/")[2]
        self._index = self._read_index()
        self._written = time.monotonic()
        self._lock = threading.Lock()

    def update(self, found: Mapping[str, ObjectInfo], *, prune: bool) -> pathlib.Path:
        """Downloads what differs from `found`, and with `prune` removes what is not in it."""
        if "" not in found:
            if not self._target.is_dir():
                files.remove(self._target)
            self._target.mkdir(parents=True, exist_ok=True)
            if prune:
                self._prune(found)
        changed = [name for name, info in found.items() if not self._is_current(name, info)]
        if not changed:
            return self._target
        self._log_start(found, changed)
        with _partial(self._partial):
            try:
                _in_threads(lambda name: self._fetch(name, found[name]), changed)
            finally:
                self._write_index()
        return self._target

    def _fetch(self, name: str, info: ObjectInfo) -> None:
        path = self._target / name
        info = buckets.fetch(join(self._url, name), info, path, _temporary(self._partial))
        with self._lock:
            self._index[name] = (info.size, info.tag, path.stat().st_mtime_ns)
            if time.monotonic() - self._written > _INDEX_SECONDS:
                self._write_index()

    def _is_current(self, name: str, info: ObjectInfo) -> bool:
        path = self._target / name
        if not path.is_file():
            return False
        status = path.stat()
        known = (info.size, info.tag, status.st_mtime_ns)
        return status.st_size == info.size and self._index.get(name) == known

    def _prune(self, found: Mapping[str, ObjectInfo]) -> None:
        self._index = {name: entry for name, entry in self._index.items() if name in found}
        for where, folders, names in os.walk(self._target, topdown=False):
            here = pathlib.Path(where)
            for name in names:
                if (here / name).relative_to(self._target).as_posix() not in found:
                    (here / name).unlink(missing_ok=True)
            for name in folders:
                with contextlib.suppress(OSError):  # it is not empty
                    (here / name).rmdir()

    def _log_start(self, found: Mapping[str, ObjectInfo], changed: Sequence[str]) -> None:
        if distributed.is_primary():
            size = sum(found[name].size for name in changed) / 1e6
            objects = "object" if len(changed) == 1 else "objects"
            _log.info(f"{self._url}: copying {len(changed):,} {objects}, {size:,.1f} MB")

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
            # Each file is renamed when it is complete: two processes only do the work twice.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield


@contextlib.contextmanager
def _partial(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder for incomplete downloads; removes those that killed processes have left."""
    for left in folder.parent.glob("partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:
                files.remove(left)
    folder.mkdir()
    try:
        yield folder
    finally:
        files.remove(folder)


def _temporary(folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{os.getpid()}-{next(_counter)}"


def _in_threads(function: Callable[[str], object], names: Sequence[str]) -> None:
    """Calls a function for each name, several at a time; the first error ends all.

    The threads are daemons, so that a signal ends the process in the middle of a download.
    """
    if len(names) == 1:
        function(names[0])
        return
    left, lock = iter(names), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                name = next(left, None)
            if name is None:
                return
            try:
                function(name)
            except BaseException as error:
                errors.append(error)

    count = min(bucket_connection.PARALLEL, len(names))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # a signal
        errors.append(error)
        raise
    if errors:
        raise errors[0]
