"""The images that the rows of a table name: files of a folder, a zip or a bucket.

A cell may be a path below the folder, a path without the suffix, or the name of a file at any
depth, such as an `image_id`. A path that leads out of the folder is an error.
"""

from __future__ import annotations

import collections
import os
import pathlib
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

from bloodjax.data import names
from bloodjax.data.formats.archive import Archive, keep_open, read_file
from bloodjax.data.image_types import SUFFIXES
from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, remote

_DRIVE = re.compile(r"[A-Za-z]:/")


class TableImages:
    """Finds and reads the images of a table."""

    def __init__(self, root: str):
        """Takes a folder, a zip or the URL of a folder in a bucket; files are listed when needed.

        Raises:
          UserError: There is no such folder or zip.
        """
        self.root = root
        self._is_remote = bucket_urls.is_remote(root) and not root.lower().endswith(".zip")
        self._path = pathlib.Path(os.path.expanduser(root))
        if bucket_urls.is_remote(root) and not self._is_remote:
            self._path = pathlib.Path(remote.local(root))
        if not self._is_remote:
            is_zip = self._path.is_file() and self._path.suffix.lower() == ".zip"
            if not is_zip and not self._path.is_dir():
                raise UserError(
                    f"{root}: no such folder or zip, expected the images of a table "
                    "(config.data.images or --images)"
                )
        self._is_folder = not self._is_remote and self._path.is_dir()
        self._archive: Archive | None = None
        self._copies: dict[str, pathlib.Path] = {}
        self._lists: _Lists | None = None

    def find(self, cell: str) -> str:
        """The image that a cell names, as a path below the folder or as a URL.

        Raises:
          LookupError: There is none, or there are several; the message says so.
        """
        if bucket_urls.is_remote(cell):
            return self._below(bucket_urls.normalised(cell))
        name = self._relative(cell)
        # `os.path.isfile` raises nothing for a name that is too long or in a folder that may not be
        # entered. The folder is not listed before, as it may hold far more.
        if self._is_folder and os.path.isfile(self._path / name):
            return name
        try:
            listed = self._listed()
        except UserError as error:
            if self._is_folder:
                raise LookupError(str(error)) from error
            raise
        return listed.find(name)

    def copy(self, urls: Sequence[str]) -> tuple[str, str] | None:
        """Copies objects to the cache.

        Returns:
          None, or the first URL that cannot be copied and why.
        """
        by_folder: dict[str, list[str]] = {}
        for url in urls:
            by_folder.setdefault(url.rpartition("/")[0], []).append(url)
        for each in by_folder.values():
            try:
                paths = remote.local_copies(each)
            except UserError as error:
                return each[0], str(error)
            for url, path in zip(each, paths, strict=True):
                if not path.is_file():
                    return url, "no such object in the bucket"
                self._copies[url] = path
        return None

    def archive(self, found: Sequence[str]) -> Archive:
        """The images `found` as an archive of these files; those below a URL are copied first.

        Raises:
          UserError: A bucket cannot be read.
        """
        copies = self._copies
        read: Callable[[str], bytes]
        if self._is_remote:
            below = [name for name in found if name not in copies]
            folder = remote.local_copy(self.root, below) if below else self._path
            read = _reader(folder)
        elif self._is_folder and self._archive is None:
            read = _reader(self._path)
        else:
            read = self._opened().read
        if not copies:
            return Archive(tuple(found), frozenset(), read)
        return Archive(
            tuple(found),
            frozenset(),
            lambda name: read_file(copies[name]) if name in copies else read(name),
        )

    def _below(self, url: str) -> str:
        """A URL relative to the folder, if this is in a bucket and contains it."""
        if self._is_remote:
            prefix = bucket_urls.normalised(self.root) + "/"
            if url.startswith(prefix):
                return self._listed().find(url.removeprefix(prefix))
        return url

    def _relative(self, cell: str) -> str:
        """A cell as a normal path below the folder."""
        path = cell.replace("\\", "/")
        if "\0" in path:
            raise LookupError("it is not a path")
        if path.startswith("~"):
            path = os.path.expanduser(path)
        if _DRIVE.match(path) and os.name != "nt":
            raise LookupError(f"it is a path of Windows, expected one below {self.root}")
        if os.path.isabs(path):
            inside = [
                os.path.relpath(path, base)
                for base in (os.path.abspath(self._path), os.path.realpath(self._path))
                if self._is_folder
            ]
            path = next((each for each in inside if not each.startswith("..")), "..")
        normal = posixpath.normpath(path)
        if normal == ".." or normal.startswith("../"):
            raise LookupError(
                f"it leaves {self.root}, expected a path below it, or config.data.images (--images)"
                " to name the folder that contains it"
            )
        return normal

    def _opened(self) -> Archive:
        if self._archive is None:
            self._archive = keep_open(self._path)
        return self._archive

    def _listed(self) -> _Lists:
        if self._lists is None:
            if self._is_remote:
                files: Iterable[str] = filter(None, buckets.list_files(self.root))
                self._lists = _Lists(self.root, files, None)
            else:
                archive = self._opened()
                self._lists = _Lists(self.root, archive.files, archive.read)
        return self._lists


class _Lists:
    """The files below a folder by their paths and names, in any form (see `names.form`)."""

    def __init__(self, root: str, files: Iterable[str], read: Callable[[str], bytes] | None):
        self._root, self._read = root, read
        self._files = frozenset(files)
        self._by_path = _index(self._files, names.path_form)
        self._by_path_stem = _index(self._files, lambda path: _stem(names.path_form(path)))
        self._by_name = _index(self._files, lambda path: names.form(path.rpartition("/")[2]))
        self._by_name_stem = _index(
            self._files, lambda path: _stem(names.form(path.rpartition("/")[2]))
        )
        tops = {path.partition("/")[0] for path in self._files}
        self._top = tops.pop() if len(tops) == 1 else ""

    def find(self, name: str) -> str:
        if name in self._files:
            return name
        form = names.path_form(name)
        places = [(self._by_path, form), (self._by_path_stem, form)]
        if self._top:
            below = f"{names.path_form(self._top)}/{form}"
            places += [(self._by_path, below), (self._by_path_stem, below)]
        if "/" not in name:
            places += [(self._by_name, form), (self._by_name_stem, form)]
        for index, key in places:
            if found := index.get(key):
                return self._only(found)
        raise LookupError(f"there is no such image in {self._root}{self._hint(form)}")

    def _only(self, found: list[str]) -> str:
        """The one file of several, if all have the same content."""
        first, *others = sorted(found)
        if others and (self._read is None or not self._same(first, others)):
            raise LookupError(
                f"there are several in {self._root}: {', '.join(sorted(found)[:3])}; expected one, "
                "or its path"
            )
        return first

    def _same(self, first: str, others: Sequence[str]) -> bool:
        try:
            content = self._read(first)
            return all(self._read(other) == content for other in others)
        except ValueError:
            return False

    def _hint(self, form: str) -> str:
        stem = _stem(form.rpartition("/")[2])
        near = self._by_name_stem.get(stem, [])
        return f"; there is {near[0]}" if len(near) == 1 else ""


def _index(files: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = collections.defaultdict(list)
    for path in files:
        index[key(path)].append(path)
    return index


def _stem(name: str) -> str:
    """A name without the suffix of an image."""
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}" in SUFFIXES else name


def _reader(folder: pathlib.Path) -> Callable[[str], bytes]:
    return lambda name: read_file(folder / name)
