"""Runs and outputs of a command that are in buckets, in local folders while the command works.

A command reads and writes local paths. In the body of `opened`, `open_run` and `open_output` return
such a path for a URL, and after the body what was written there is uploaded.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, message_urls, mirror, remote
from bloodjax.io.files import make_folder

# Existing objects of an output up to so many bytes are downloaded. Larger ones are only listed.
_SMALL = 16 * 2**20


class _Staged(NamedTuple):
    """A folder that is uploaded.

    Attributes:
      copy: The folder and its URL.
      place: The temporary folder to delete: the folder itself, or the one that it is in.
    """

    copy: mirror.Mirror
    place: pathlib.Path


_staged: list[_Staged] = []


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
        while _staged:
            copy, place = _take()
            try:
                copy.push()
            except mirror.Lost as error:
                failures.append(str(error))
            except UserError as error:
                failures.append(f"{error}; the files are in {copy.folder}")
            else:
                shutil.rmtree(place, ignore_errors=True)
        if failures:
            raise UserError("; ".join(failures))
    except UserError as error:
        raise UserError(message_urls.with_urls(str(error))) from error
    finally:
        while _staged:
            shutil.rmtree(_take().place, ignore_errors=True)


def open_run(path: str | os.PathLike[str]) -> pathlib.Path:
    """A run's folder to be read and added to, or the local copy of one in a bucket.

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
    if not mirror.exists(url):
        raise UserError(f"{url}: no such folder in the bucket")
    place = _new_folder()
    folder = place / (posixpath.basename(url) or "run")
    mirror.copy_into(url, folder)
    # What was compiled here is for this machine's processor.
    _add(mirror.Mirror(folder, url, without="compiled"), place)
    return folder


def open_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A file or a folder to be written, or the local copy of one in a bucket.

    Args:
      path: Path or URL.

    Returns:
      A path. What the bucket has already is there too; a large object is an empty file. `opened`
      uploads what is written there, and the files beside it.

    Raises:
      UserError: The bucket cannot be read, or the name is one of a file that is not complete.
    """
    bucket_urls.check(str(path))
    if not bucket_urls.is_remote(path):
        return _expanded(path)
    url = bucket_urls.normalised(str(path))
    if mirror.is_partial(posixpath.basename(url)):
        raise UserError(
            f"{url}: names that end in {mirror.PARTIAL_END} are those of files that are not "
            "complete, expected another name"
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
        large = place / name / key  # the key of a single object is ""
        large.parent.mkdir(parents=True, exist_ok=True)
        large.touch()
    _add(mirror.Mirror(place, parent), place)
    return place / name


def _add(copy: mirror.Mirror, place: pathlib.Path) -> None:
    _staged.append(_Staged(copy, place))
    message_urls.add(copy.folder, copy.url)


def _take() -> _Staged:
    """The next folder to upload. Messages name its path from now on: its files may stay there."""
    staged = _staged.pop(0)
    message_urls.remove(staged.copy.folder)
    return staged


def _expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(path))  # pathlib's raises for ~NAME without such a user


def _new_folder() -> pathlib.Path:
    parent = remote.cache_folder().resolve() / "open"
    make_folder(parent)
    return pathlib.Path(tempfile.mkdtemp(dir=parent))
