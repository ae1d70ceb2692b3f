"""Local folders that are copies of folders in buckets.

Other modules read and write local folders. A folder in a bucket is copied to one (`copy_into`), and
what was written there is uploaded (`Mirror`). This is how a bucket compares with a disk:

- A file that is renamed appears with all its content, and so does an object that is uploaded.
- A folder that is renamed appears with all its files, but the objects of a folder appear one by
  one. A reader recognises a complete folder by one of its files (`_SEALS`). This file is uploaded
  after all others, and deleted before them.
- A file appears when it is written, but an object appears when it is uploaded: with each
  checkpoint, at barriers between processes, and at the end of a command.

`training/remote_workdir.py` has what takes the place of a lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import posixpath
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, remote
from bloodjax.io.files import link, make_folder

T = TypeVar("T")

# Names of files that make others valid, in the order in which they are uploaded: a run's config,
# without which its checkpoints are refused; the checksums of a checkpoint; what describes packed
# shards; a report.
_SEALS = (
    "config.json",
    "checksums.json",
    "features.json",
    "dataset_info.json",
    "index.json",
    "index.html",
)
_LOCK = "lock"  # of a workdir
# The end of the names of files that are not complete, and a part of the names of orbax's folders.
PARTIAL_END, _PARTIAL_STEP = ".tmp", ".orbax-checkpoint-tmp"
# Seconds for which an upload of a training run is repeated while the bucket cannot be reached.
PATIENCE = 600.0
_RETRY_SECONDS = 10.0
# Times that an upload starts again because a file was replaced or deleted meanwhile.
_ATTEMPTS = 5
# What copytree raises: for the errors of all files together, and for the folder itself.
_COPY_ERRORS = (shutil.Error, FileNotFoundError)

_log = logging.getLogger("bloodjax")


class Lost(UserError):
    """A local folder may not be uploaded, now or later."""


class Mirror:
    """A local folder, whose files are uploaded to a folder in a bucket when `push` is called.

    Attributes:
      folder: The local folder.
      url: URL of the folder in the bucket.
    """

    def __init__(self, folder: pathlib.Path, url: str, *, without: str = ""):
        """Takes the files that are in `folder` now for those that the bucket has.

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
          check: Called before each attempt. An error that it raises is a failure, and `Lost` ends
            the push.
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
            seals = [name for name in changed if posixpath.basename(name) in _SEALS]
            seals.sort(key=lambda name: _SEALS.index(posixpath.basename(name)))
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
        """Raises `Lost` if the folder was deleted, even if there is a new one of its name."""
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
                if (here / name).as_posix() != self._without and not is_partial(name)
            ]
            for name in names:
                path = (here / name).as_posix()
                if name != _LOCK and not is_partial(name):
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
    """A descriptor of a folder, open while `owner` exists, so that no new folder gets its inode."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    weakref.finalize(owner, os.close, number)
    return number


def is_partial(name: str) -> bool:
    """Whether a file or folder of this name is not complete, and so is not uploaded."""
    return name.endswith(PARTIAL_END) or _PARTIAL_STEP in name


def persistently(action: Callable[[], T], patience: float) -> T:
    """Calls `action`, and calls it again for up to `patience` seconds while the bucket fails.

    Raises:
      Lost: `action` raised it. It is not called again then.
      UserError: `action` raised it in the last call.
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


def exists(url: str) -> bool:
    """Whether a folder in a bucket has files besides a lock.

    Raises:
      UserError: The bucket cannot be read.
    """
    return bool(buckets.list_files(f"{url}/").keys() - {_LOCK})


def copy_into(url: str, folder: pathlib.Path) -> None:
    """Makes `folder` a copy of a folder in a bucket, which need not exist.

    The files are links to those in the cache. A run replaces its files and does not change them, so
    the files in the cache stay as they are.

    Raises:
      UserError: The bucket cannot be read, or a file cannot be copied, in two attempts, because
        other commands change the cache.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder.parent)
    if not exists(url):
        make_folder(folder)
        return
    for is_last in (False, True):
        try:
            _copy_from_cache(url, folder)
            return
        except _COPY_ERRORS as error:
            if is_last:
                raise UserError(
                    f"{url}: its copy in the cache cannot be read ({_reason(error)}), expected "
                    "that no other command changes it at the same time; start again"
                ) from error


def _copy_from_cache(url: str, folder: pathlib.Path) -> None:
    source = remote.local_copy(f"{url}/")

    def left_out(where: str, names: list[str]) -> set[str]:
        return {_LOCK} if pathlib.Path(where) == source else set()

    try:
        shutil.copytree(source, folder, copy_function=link, ignore=left_out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # its argument lists source, target and message of each
        return str(error.args[0][0][2])
    return str(error)
