"""Folders in buckets, through copies on the local disk.

Everything above this module reads and writes local folders. A folder in a bucket is copied to one
(`Mirror`), and what was written there is uploaded. Three things that a disk has and a bucket lacks
are made up for here:

- A file that is renamed appears with all its content, and so does an object that is uploaded.
- A folder that is renamed appears with all its files. Objects of a folder appear one by one, so the
  file by which a reader recognises a complete folder (`_SEALS`) is uploaded after all others, and
  deleted before them.
- What is written appears at once. Objects appear when they are uploaded: with each checkpoint, at
  barriers between processes, and at the end of a command.

What takes the place of a lock is in `training/remote_workdir.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, remote
from bloodjax.io.files import make_folder

T = TypeVar("T")

# Names of files that make others valid, in the order in which they are uploaded: the checksums of
# a checkpoint, a run's config, what describes packed shards, a report.
_SEALS = (
    "checksums.json",
    "config.json",
    "features.json",
    "dataset_info.json",
    "index.json",
    "index.html",
)
# The lock of a workdir, and files that are not complete: ends of names, and a part of orbax's.
_LOCK = "lock"
_PARTIAL_END, _PARTIAL_STEP = ".tmp", ".orbax-checkpoint-tmp"
# Seconds for which an upload of a training run is repeated while the bucket cannot be reached.
PATIENCE = 600.0
_RETRY_SECONDS = 10.0
# Times that an upload starts again because a file was replaced or deleted meanwhile.
_ATTEMPTS = 5
# Existing objects of an output up to so many bytes are downloaded; larger ones are only listed.
_SMALL = 16 * 2**20
# What copytree raises: for the errors of all files together, and for the folder itself.
_COPY_ERRORS = (shutil.Error, FileNotFoundError)

_log = logging.getLogger("bloodjax")
# Local folder -> URL, of all copies that are open. For messages.
_shown: dict[str, str] = {}
_opened: list[Mirror] = []


class Lost(UserError):
    """What is in a local folder may not be uploaded; to try again would not help."""


class Mirror:
    """A local folder, whose files are uploaded to a folder in a bucket when `push` is called.

    Attributes:
      folder: The local folder.
      url: URL of the folder in the bucket.
    """

    def __init__(self, folder: pathlib.Path, url: str, *, without: str = ""):
        """The files that are in `folder` now are those of the bucket.

        Args:
          folder: The local folder.
          url: URL of the folder in the bucket.
          without: A folder in it that is not uploaded.
        """
        self.folder, self.url = folder, url
        self._without = without
        self._lock = threading.Lock()
        self._handle = _handle(self, folder)
        self._uploaded = self._scan()

    def push(
        self,
        patience: float = 0.0,
        check: Callable[[], None] = lambda: None,
        *,
        delete: bool = True,
    ) -> None:
        """Uploads files that are new or have changed, then deletes objects whose files are gone.

        Args:
          patience: Seconds for which a failure is repeated.
          check: Called before each attempt. What it raises is a failure too; `Lost` ends the push.
          delete: Whether to delete objects.

        Raises:
          Lost: `check` raised it, or the local folder was deleted. Nothing is deleted then.
          UserError: The bucket cannot be written to.
        """
        with self._lock:
            persistently(lambda: self._push(check, delete), patience)

    def _push(self, check: Callable[[], None], delete: bool) -> None:
        check()
        for attempt in range(_ATTEMPTS):
            files = self._scan()
            self._check_folder()
            changed = [name for name, state in files.items() if self._uploaded.get(name) != state]
            if not changed:
                break
            seals = [name for name in changed if _basename(name) in _SEALS]
            seals.sort(key=lambda name: _SEALS.index(_basename(name)))
            try:
                remote.upload(self.folder, self.url, changed, last=seals)
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue  # the run replaced or deleted a file; the next scan sees what is left
            self._uploaded |= {name: files[name] for name in changed}
        if not delete:
            return
        self._check_folder()
        gone = self._uploaded.keys() - files.keys()
        for target in sorted({self._highest_missing(name) for name in gone}):
            remote.delete(bucket_urls.join(self.url, target), first=_SEALS)
        for name in gone:
            del self._uploaded[name]

    def _check_folder(self) -> None:
        """Raises `Lost` if the folder is not the one of the start."""
        with contextlib.suppress(OSError):
            if self._handle is not None and os.path.samestat(
                os.fstat(self._handle), self.folder.stat()
            ):
                return
        raise Lost(
            f"the local copy of {self.url} (in {self.folder.parent}) was deleted while it was in "
            "use; the bucket has what was uploaded before"
        )

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Name -> size and time of change of each complete file."""
        found = {}
        for where, folders, names in os.walk(self.folder):
            here = pathlib.Path(where).relative_to(self.folder)
            folders[:] = [
                name
                for name in folders
                if (here / name).as_posix() != self._without and not _is_partial(name)
            ]
            for name in names:
                path = (here / name).as_posix()
                if name != _LOCK and not _is_partial(name):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        status = (self.folder / path).stat()
                        found[path] = (status.st_size, status.st_mtime_ns)
        return found

    def _highest_missing(self, name: str) -> str:
        """The highest folder of a deleted file that is gone too, or the file."""
        parts = pathlib.PurePosixPath(name).parts
        paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        return next((path for path in paths if not (self.folder / path).exists()), name)


def _handle(owner: object, folder: pathlib.Path) -> int | None:
    """A folder's descriptor, as long as `owner` exists: no other folder gets its inode then."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    weakref.finalize(owner, os.close, number)
    return number


def _basename(name: str) -> str:
    return name.rpartition("/")[2]


def _is_partial(name: str) -> bool:
    return name.endswith(_PARTIAL_END) or _PARTIAL_STEP in name


def persistently(action: Callable[[], T], patience: float) -> T:
    """Calls `action` until the bucket does not refuse it, for `patience` seconds at most.

    Raises:
      Lost: `action` raised it, which is not repeated.
      UserError: The bucket still refuses it.
    """
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            return action()
        except Lost:
            raise
        except UserError as error:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise
            if not said:
                _log.info(f"{error}; trying again for up to {patience:g} s")
                said = True
        time.sleep(_RETRY_SECONDS)


@contextlib.contextmanager
def shown_as(folder: pathlib.Path, url: str) -> Iterator[None]:
    """In the body, `shown` replaces the path of `folder` by `url`; so do errors of the user's."""
    _shown[os.fspath(folder)] = url
    try:
        yield
    except UserError as error:
        error.args = (shown(str(error)),)  # it is printed where the folder is not known any more
        raise
    finally:
        _shown.pop(os.fspath(folder), None)


def shown(text: str) -> str:
    """A message in which the URL stands for the path of the local copy."""
    for folder, url in _shown.items():
        text = text.replace(folder, url)
    return remote.with_urls(text)


def copy_into(url: str, folder: pathlib.Path) -> None:
    """Makes `folder` a copy of a folder in a bucket, which need not exist.

    The files are links to those in the cache, because a file of a run is replaced and not changed.

    Raises:
      UserError: The bucket cannot be read; or a file cannot be copied, twice: other commands update
        the cache.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder.parent)
    if not set(buckets.list_files(f"{url}/")) - {_LOCK}:
        make_folder(folder)
        return
    try:
        _copy_from_cache(url, folder)
    except _COPY_ERRORS:
        try:
            _copy_from_cache(url, folder)
        except _COPY_ERRORS as error:
            raise UserError(
                f"{url}: its copy in the cache cannot be read ({_reason(error)}), expected that no "
                "other command changes it at the same time; start again"
            ) from error


def _copy_from_cache(url: str, folder: pathlib.Path) -> None:
    source = remote.local_copy(f"{url}/")
    try:
        shutil.copytree(
            source, folder, copy_function=_link, ignore=lambda where, _: _locks(where, source)
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # its argument lists source, target and message of each
        return str(error.args[0][0][2])
    return str(error)


def _locks(where: str, source: pathlib.Path) -> set[str]:
    return {_LOCK} if pathlib.Path(where) == source else set()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """After the body, uploads what was written to the folders of `open_run` and `open_output`.

    If the body fails, nothing is uploaded.

    Raises:
      UserError: Buckets cannot be written to. The message says where the files are that were not
        uploaded; all others were.
    """
    try:
        yield
        failures = []
        while _opened:
            mirror = _opened.pop(0)
            _shown.pop(os.fspath(mirror.folder), None)
            try:
                mirror.push()
            except Lost as error:
                failures.append(str(error))
            except UserError as error:
                failures.append(f"{error}; the files are in {mirror.folder}")
            else:
                _remove(mirror)
        if failures:
            raise UserError("; ".join(failures))
    except UserError as error:
        raise UserError(shown(str(error))) from error
    finally:
        while _opened:
            mirror = _opened.pop()
            _shown.pop(os.fspath(mirror.folder), None)
            _remove(mirror)


def open_run(path: str | os.PathLike[str]) -> pathlib.Path:
    """A run's folder, to be read and added to: of one in a bucket, a local copy.

    Args:
      path: Path or URL.

    Returns:
      A path; `opened` uploads what is written there.

    Raises:
      UserError: There is no such folder in the bucket, or it cannot be read.
    """
    bucket_urls.check(str(path))
    if not bucket_urls.is_remote(path):
        return _expanded(path)
    url = bucket_urls.normalised(str(path))
    if not set(buckets.list_files(f"{url}/")) - {_LOCK}:
        raise UserError(f"{url}: no such folder in the bucket")
    folder = _new_folder() / (_basename(url) or "run")
    copy_into(url, folder)
    # A reader compiles for its own processor.
    return _open(Mirror(folder, url, without="compiled"), folder)


def open_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A file or a folder to be written: of one in a bucket, a local copy.

    Args:
      path: Path or URL.

    Returns:
      A path. What the bucket has there already is there too, of large objects an empty file.
      `opened` uploads what is written there, and to files beside it.

    Raises:
      UserError: The bucket cannot be read, or the name is one of a file that is not complete.
    """
    bucket_urls.check(str(path))
    if not bucket_urls.is_remote(path):
        return _expanded(path)
    url = bucket_urls.normalised(str(path))
    if _is_partial(_basename(url)):
        raise UserError(
            f"{url}: names that end in {_PARTIAL_END} are those of files that are not complete, "
            "expected another name"
        )
    parent, _, name = url.rpartition("/")
    if parent.endswith("/"):  # the whole bucket
        parent, name = url, ""
    place = _new_folder()
    found = buckets.list_files(url)
    small = [key for key, info in found.items() if info.size <= _SMALL]
    if small == [""]:
        remote.download(url, place)
    elif small:
        remote.download(f"{url}/", place / name, small)
    for key in found.keys() - set(small):
        path = place / name / key  # an object's key is ""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return _open(Mirror(place, parent), place / name)


def _expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(path))  # pathlib's raises for ~NAME without such a user


def _new_folder() -> pathlib.Path:
    parent = remote.cache_folder().resolve() / "open"
    make_folder(parent)
    return pathlib.Path(tempfile.mkdtemp(dir=parent))


def _open(mirror: Mirror, path: pathlib.Path) -> pathlib.Path:
    _opened.append(mirror)
    _shown[os.fspath(mirror.folder)] = mirror.url
    return path


def _remove(mirror: Mirror) -> None:
    place = mirror.folder
    if place.parent.name != "open":  # a run's folder is in a folder of its own
        place = place.parent
    shutil.rmtree(place, ignore_errors=True)
