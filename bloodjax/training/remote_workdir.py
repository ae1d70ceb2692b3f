"""A workdir in a bucket: its lock, and the local folder in which the run works.

The run reads and writes a local folder, which is a copy of the one in the bucket (`io/mirror.py`).
Each process of the run has one of its own. The primary process uploads what it wrote with each
checkpoint, at barriers and at the end; the others download it at barriers, except checkpoints,
which the primary process sends to them (`checkpoints/manager.py`). The bucket has the run, and the
local folder is deleted at the end.

What takes the place of the operating system's lock is the object `lock`, which a bucket creates
only if there is none. Its holder replaces it every few seconds. A lock that has not changed for
some minutes is one whose holder is gone. Whoever replaces it first has it; the bucket decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.errors import Stopped, UserError
from bloodjax.io import bucket_urls, buckets, message_urls, mirror, processes, remote
from bloodjax.io.files import make_folder
from bloodjax.training.workdir import CHECKPOINTS, LOCK_FILE

# Seconds between two replacements of a lock by its holder.
_BEAT_SECONDS = 20.0
# Seconds without a replacement after which a lock counts as abandoned. The process that waits
# measures them, because the clocks of two machines differ.
_STALE_SECONDS = 120.0
# Seconds between two looks at a lock that another process holds.
_POLL_SECONDS = 2.0


@contextlib.contextmanager
def local_workdir(workdir: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """The local folder to train in: the workdir, or a copy of it if it is in a bucket.

    Args:
      workdir: Path of a folder, or URL of one in a bucket.

    Raises:
      UserError: Another process trains in this workdir, or the bucket cannot be read or written to.
    """
    bucket_urls.check(str(workdir))
    if not bucket_urls.is_remote(workdir):
        yield pathlib.Path(os.path.expanduser(workdir))
        return
    url = bucket_urls.normalised(str(workdir))
    digest = hashlib.blake2b(url.encode(), digest_size=10).hexdigest()
    place = remote.cache_folder().resolve() / "workdirs" / digest / str(distributed.process_index())
    folder = place / (url.rpartition("/")[2] or "run")
    copied = _copied_by_primary if distributed.is_primary() else _copied_by_other
    with message_urls.shown_as(folder, url), copied(url, folder):
        yield folder
    shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _copied_by_primary(url: str, folder: pathlib.Path) -> Iterator[None]:
    with _Lock(url) as lock:
        distributed.exchange(None)  # the others' folders may be those of a run that had the lock
        mirror.copy_into(url, folder)
        copy = mirror.Mirror(folder, url)

        def push() -> None:
            copy.push(mirror.PATIENCE, lock.check)

        with distributed.sharing_files(push, lambda: None):
            distributed.barrier()  # the others copy what the run has so far
            try:
                yield
            except BaseException as error:
                with contextlib.suppress(UserError):  # the error that ended the run counts
                    # The error may be that somebody deletes the local folder at this moment.
                    copy.push(check=lock.check, delete=isinstance(error, Stopped))
                raise
        push()


@contextlib.contextmanager
def _copied_by_other(url: str, folder: pathlib.Path) -> Iterator[None]:
    distributed.exchange(None)  # until the primary process has the lock
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)

    def pull() -> None:
        found = buckets.list_files(f"{url}/")
        names = [name for name in found if name != LOCK_FILE and not _in_checkpoint(name)]
        if names:
            remote.download(f"{url}/", folder, names)

    def pull_persistently() -> None:
        mirror.persistently(pull, mirror.PATIENCE)

    with distributed.sharing_files(lambda: None, pull_persistently):
        distributed.barrier()
        yield


def _in_checkpoint(name: str) -> bool:
    return CHECKPOINTS in name.split("/")[:-1]


class _Lock:
    """The lock of a workdir in a bucket. A context manager, in whose body a thread renews it."""

    def __init__(self, url: str):
        """Nothing is locked yet.

        Args:
          url: URL of the workdir.
        """
        self._workdir, self._url = url, bucket_urls.join(url, LOCK_FILE)
        self._id, self._beats = uuid.uuid4().hex, 0
        self._tag, self._renewed = "", 0.0
        self._lost = ""
        self._mutex, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, daemon=True)

    def __enter__(self) -> _Lock:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(UserError):  # the lock becomes stale instead
            if self._read().get("id") == self._id:
                remote.delete(self._url)

    def check(self) -> None:
        """Makes sure that this process still holds the lock, before it writes to the workdir.

        Raises:
          mirror.Lost: Another process has taken it over.
          UserError: The bucket cannot be reached, so that another process may have.
        """
        if not self._lost and time.monotonic() - self._renewed > _STALE_SECONDS / 2:
            self._renew()
        if self._lost:
            raise mirror.Lost(self._lost)

    def _acquire(self) -> None:
        """Creates the lock, or takes over one whose holder is gone.

        Raises:
          UserError: Its holder renews it.
        """
        seen: tuple[str, float] | None = None
        while True:
            info = buckets.stat(self._url)
            if info is None:
                tag = buckets.create_exclusive(self._url, self._content())
                if tag is None:
                    continue  # another process was faster
                break
            now = time.monotonic()
            if seen is not None and info.tag != seen[0]:
                raise UserError(
                    f"--workdir={self._workdir}: {_name(self._holder())} is training here; "
                    "expected one process at a time, or another --workdir"
                )
            holder = self._holder()
            seen = seen or (info.tag, now)
            # One of this machine need not be waited for if it is gone.
            is_gone = processes.is_alive(holder.get("process")) is False
            if is_gone or now - seen[1] >= _STALE_SECONDS:
                tag = buckets.replace(self._url, self._content(), info.tag)
                if tag is None:
                    continue  # another process was faster
                console.log_info(
                    f"--workdir={self._workdir}: took over the lock of {_name(holder)}, which "
                    "renews it no more"
                )
                break
            if now == seen[1]:
                console.log_info(
                    f"--workdir={self._workdir}: locked by {_name(holder)}; waiting up to "
                    f"{_STALE_SECONDS:g} s to see whether it renews the lock"
                )
            time.sleep(_POLL_SECONDS)
        self._tag, self._renewed = tag, time.monotonic()

    def _renew_regularly(self) -> None:
        while not self._end.wait(_BEAT_SECONDS) and not self._lost:
            with contextlib.suppress(UserError):  # the next one may succeed
                self._renew()

    def _renew(self) -> None:
        with self._mutex:
            self._beats += 1
            tag = buckets.replace(self._url, self._content(), self._tag)
            if tag is None:
                tag = self._renew_again()
            if tag is None:
                self._lost = (
                    f"--workdir={self._workdir}: {_name(self._holder())} has taken over the lock, "
                    f"which this process did not renew for {_STALE_SECONDS:g} s; expected one "
                    "process at a time"
                )
                return
            self._tag, self._renewed = tag, time.monotonic()

    def _renew_again(self) -> str | None:
        """Replaces the lock if it is ours with another tag; returns its new tag, else None.

        That is so if an earlier renewal was applied and its answer was lost.
        """
        info = buckets.stat(self._url)
        # The tag is read first: if another process takes the lock over now, it changes.
        if info is None or self._read().get("id") != self._id:
            return None
        return buckets.replace(self._url, self._content(), info.tag)

    def _holder(self) -> dict[str, Any]:
        """As `_read`, and {} if the lock cannot be read."""
        try:
            return self._read()
        except UserError:  # it may have been deleted meanwhile
            return {}

    def _read(self) -> dict[str, Any]:
        """The content of the lock; {} if it is not one of ours."""
        try:
            content = json.loads(buckets.read_bytes(self._url))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _content(self) -> bytes:
        # Each renewal has other bytes, so that it has another tag.
        content = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "id": self._id,
            "renewed": self._beats,
            "process": processes.identity(os.getpid()),
        }
        return json.dumps(content).encode()


def _name(holder: dict[str, Any]) -> str:
    return str(holder.get("holder", "another process"))
