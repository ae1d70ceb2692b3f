"""Lists and reads the files of a folder or a zip file through one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

from bloodjax.data.reading import LeftOut, merge
from bloodjax.errors import UserError

# Largest unpacked size of a zip and of one member, in bytes: kilobytes can unpack to terabytes.
MAX_UNPACKED = 16 * 2**30
MAX_MEMBER = 2**30

# Errors that `zipfile` raises for damaged data, apart from ValueError.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError)

# What operating systems, network drives and other programs leave in folders, in lower case.
_SYSTEM = {
    *("__macosx", "desktop.ini", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "icon\r"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *("__pycache__", "network trash folder", "temporary items", "picasa.ini", "found.000"),
}
# Streams that a file system without streams keeps as a file beside the image: IMAGE:STREAM. Some
# programs write another character for the colon, or none.
_STREAM = re.compile(
    r"zone\.identifier$|@syno(eastream|resource)$|[:\uf03a](encryptable|smartscreen|mstream|"
    r"afp_(afpinfo|resource)|com\.apple\.[\w.#]+|\$data)(:\$data)?$"
)

# A zip member with this flag has a name in UTF-8; otherwise zipfile decodes it as code page 437.
_UTF8_FLAG = 0x800
# The extra field of a zip member with its name in UTF-8.
_UNICODE_PATH = 0x7075

# Files by which a folder that this library has written is known.
_OUTPUTS = (
    *({"audit.json", "index.html"}, {"metrics.json", "predictions.csv"}, {"config.json", "lock"}),
    *({"config.json", "splits.json"}, {"dataset_info.json", "index.json"}),
)
_OUTPUT_FILES = frozenset().union(*_OUTPUTS)
_LOCK = "lock"  # the first file in a workdir
_RUN_FOLDERS = {"audit", "checkpoints", "evaluate", "report", "tensorboard"}  # in a workdir

HIDDEN, WRITTEN = "hidden or of the system", "written by bloodjax"


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files of a folder or zip, without hidden files and metadata of operating systems.

    Paths are text that can be printed: a name that is not UTF-8 is read as Windows-1252, or in a
    zip as code page 437.

    Attributes:
      files: Path of each file, sorted; "/" separates folders.
      folders: Path of each folder, including empty ones.
      read: Returns the content of the file at a path; several threads may call it at once. It
        raises ValueError if the file is damaged or cannot be read.
      left_out: Hidden files and folders, those of operating systems, and what this library has
        written. A folder counts as one.
      details: Facts about the names, for `Reading.details`.
      locate: Returns the path in the file system of the file at a path; None if it has none.
    """

    files: tuple[str, ...]
    folders: frozenset[str]
    read: Callable[[str], bytes]
    left_out: tuple[LeftOut, ...] = ()
    details: tuple[str, ...] = ()
    locate: Callable[[str], pathlib.Path] | None = None


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Archive]:
    """Opens a folder or zip file for the duration of a `with` block.

    Raises:
      UserError: The zip is damaged or encrypted, unpacks to more than `MAX_UNPACKED` bytes, or has
        members outside its own folder.
    """
    if path.is_dir():
        yield _folder(path)
    else:
        with open_zip(path) as zipped:
            yield _zip(zipped)


def keep_open(path: pathlib.Path) -> Archive:
    """Opens a folder or zip file for as long as the archive's `read` is referenced.

    Raises:
      UserError: As for `open_archive`.
    """
    return _folder(path) if path.is_dir() else _zip(open_zip(path))


def read_file(file: pathlib.Path) -> bytes:
    """The content of a file.

    Raises:
      ValueError: It cannot be read, or has more than `MAX_MEMBER` bytes.
    """
    try:
        size = file.stat().st_size
        if size > MAX_MEMBER:
            raise ValueError(f"{size} bytes, expected at most {MAX_MEMBER}")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def open_zip(path: pathlib.Path, expected: str = ".npz or .zip") -> zipfile.ZipFile:
    """Opens a zip file, such as an npz, after checking that unpacking it is safe.

    Args:
      path: The file.
      expected: What the file should be, for the message about a damaged one.

    Raises:
      UserError: As for `open_archive`.
    """
    try:
        zipped = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (*DAMAGE, ValueError) as error:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        found = "truncated or damaged" if is_zip else "not a zip file"
        raise UserError(f"{path}: {found}, expected a complete {expected}") from error
    try:
        _check_members(path, zipped.infolist())
    except UserError:
        zipped.close()
        raise
    return zipped


def _check_members(path: pathlib.Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED:
        raise UserError(f"{path}: unpacks to {total} bytes, expected at most {MAX_UNPACKED}")
    seen = set()
    for member in members:
        name = _normal(member.filename)
        where = f"{path}: member {member.filename!r}"
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise UserError(f"{where} escapes its folder, expected a relative path inside it")
        if name in seen:
            raise UserError(f"{where} occurs twice, expected each path once")
        seen.add(name)
        if member.flag_bits & 1:
            raise UserError(f"{where} is encrypted, expected a zip without a password")
        # Other methods use unbounded memory when they unpack.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{where} has compression method {member.compress_type}, expected stored or deflate"
            )


def _zip(zipped: zipfile.ZipFile) -> Archive:
    listing = _Listing("code page 437")
    members = {}
    for info in sorted(zipped.infolist(), key=lambda info: info.filename):
        name, is_text = _member_name(info)
        if _normal(name) == ".":
            continue
        is_folder = info.filename.endswith(("/", "\\"))
        path = listing.add(_normal(name).split("/"), is_folder=is_folder, is_text=is_text)
        if path and not is_folder:
            members[path] = info

    def read(name: str) -> bytes:
        size = members[name].file_size
        if size > MAX_MEMBER:
            raise ValueError(f"{size} bytes unpacked, expected at most {MAX_MEMBER}")
        try:
            with zipped.open(members[name]) as file:
                # Without a limit zlib unpacks up to 2 GiB, whatever size the zip declares.
                return file.read(size + 1)
        except DAMAGE as error:
            raise ValueError(f"damaged in the zip: {error}") from error

    return listing.archive(read)


def _folder(root: pathlib.Path) -> Archive:
    listing = _Listing("Windows-1252")
    odd: dict[str, str] = {}  # path as shown -> path in the file system, where they differ

    status = root.stat()
    # Folders to visit: path in the file system, path as shown, and the folders that contain it.
    left = [(str(root), "", frozenset({(status.st_dev, status.st_ino)}))]
    while left:
        where, shown, ancestors = left.pop()
        for entry in _entries(where):
            name, is_text = _text(entry.name)
            is_folder = _is_folder(entry)
            # A link without a target is listed, so that reading it is an error.
            if not (is_folder or _is_file(entry) or entry.is_symlink()):
                listing.leave_out("neither a file nor a folder")
                continue
            parts = [*shown.split("/"), name] if shown else [name]
            path = listing.add(parts, is_folder=is_folder, is_text=is_text)
            if path is None:
                continue
            if not is_folder:
                if entry.path != os.path.join(root, path):
                    odd[path] = entry.path
                continue
            status = entry.stat()
            key = status.st_dev, status.st_ino
            if key in ancestors:
                listing.leave_out("a link to a folder above it")
            else:
                left.append((entry.path, path, ancestors | {key}))

    def locate(name: str) -> pathlib.Path:
        return pathlib.Path(odd.get(name) or root / name)

    archive = listing.archive(lambda name: read_file(locate(name)))
    return dataclasses.replace(archive, locate=locate)


class _Listing:
    """Collects the files and folders of an archive, and counts what is left out."""

    def __init__(self, encoding: str):
        """`encoding` is the one that names are read in if they are not UTF-8."""
        self._encoding = encoding
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._odd: set[str] = set()
        self._hidden: set[str] = set()
        self._left_out: list[LeftOut] = []

    def leave_out(self, reason: str) -> None:
        """Counts an entry that is left out."""
        self._left_out.append(LeftOut(reason, "", 1))

    def add(self, parts: list[str], *, is_folder: bool, is_text: bool) -> str | None:
        """Adds an entry.

        Args:
          parts: Its path, as text.
          is_folder: Whether it is a folder.
          is_text: Whether its name is text in the archive too.

        Returns:
          The path to use; None if the entry is hidden or of a system, or in such a folder.
        """
        for depth, part in enumerate(parts, 1):
            if _is_system(part):
                self._hidden.add("/".join(parts[:depth]))
                return None
        path = "/".join(parts)
        if not is_folder:
            number = 1
            while path in self._files:  # two names that are the same text
                number += 1
                stem, dot, suffix = parts[-1].rpartition(".")
                parts = [*parts[:-1], f"{stem or suffix}~{number}{dot}{suffix if dot else ''}"]
                path = "/".join(parts)
            self._files.add(path)
        else:
            self._folders.add(path)
        if not is_text:
            self._odd.update(part for part in parts if not part.isascii())
        return path

    def archive(self, read: Callable[[str], bytes]) -> Archive:
        """The archive of what was added, without what this library has written."""
        folders = self._folders | {_parent(path) for path in self._files}
        folders |= {str(p) for path in folders for p in pathlib.PurePosixPath(path).parents}
        folders -= {".", ""}
        written = self._written()

        def is_written(path: str) -> bool:
            parents = pathlib.PurePosixPath(path).parents
            return path in written or any(str(parent) in written for parent in parents)

        files = self._files
        if written:
            roots = [path for path in written & folders if not is_written(_parent(path))]
            self._left_out += [LeftOut(WRITTEN, "", len(roots))] if roots else []
            files = {path for path in files if not is_written(path)}
            folders = {path for path in folders if not is_written(path)}
        if self._hidden:
            self._left_out.insert(0, LeftOut(HIDDEN, "", len(self._hidden)))
        details = ()
        if self._odd:
            first = min(self._odd)
            more = f" and {len(self._odd) - 1} more" if len(self._odd) > 1 else ""
            details = (f"names that are not UTF-8 read as {self._encoding}: {first}{more}",)
        return Archive(
            tuple(sorted(files)), frozenset(folders), read, merge(self._left_out), details
        )

    def _written(self) -> set[str]:
        """The folders that this library has written: audits, workdirs, evaluations and shards."""
        known: dict[str, set[str]] = {}
        written = set()
        for path in self._files:
            where, _, name = path.rpartition("/")
            if name in _OUTPUT_FILES:
                known.setdefault(where, set()).add(name)
            if ".array_record-" in name:
                written.add(where)
        written |= {w for w, names in known.items() if any(output <= names for output in _OUTPUTS)}
        locked = {where for where, names in known.items() if _LOCK in names} - written
        if locked:  # workdirs of runs that have just begun, if there is nothing else in them
            for path in self._files:
                parents = set(map(str, pathlib.PurePosixPath(path).parents))
                if not (path.endswith(f"/{_LOCK}") or parents & written):
                    locked -= parents
        if _LOCK in self._files:  # the source itself is a workdir
            written |= _RUN_FOLDERS
        return (written | locked) - {""}


def _member_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """The name of a zip member, and whether it is UTF-8.

    Some programs write UTF-8 without saying so, such as a Mac's. Otherwise it is code page 437.
    """
    name = _unicode_path(info.extra)
    if name is not None:
        return name, True
    if info.flag_bits & _UTF8_FLAG or info.filename.isascii():
        return info.filename, True
    try:
        return info.filename.encode("cp437").decode("utf-8"), True
    except UnicodeError:
        return info.filename, False


def _unicode_path(extra: bytes) -> str | None:
    """The name in a member's Unicode path field, or None."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == _UNICODE_PATH and size > 5 and extra[4] == 1:
            try:
                return extra[9 : 4 + size].decode("utf-8")
            except UnicodeError:
                return None
        extra = extra[4 + size :]
    return None


def _text(name: str) -> tuple[str, bool]:
    """A file system's name as text that can be printed, and whether it was text already."""
    try:
        name.encode("utf-8")
    except UnicodeError:
        return os.fsencode(name).decode("cp1252", "backslashreplace"), False
    return name, True


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _normal(name: str) -> str:
    return str(pathlib.PurePosixPath(name.replace("\\", "/")))


def _is_system(name: str) -> bool:
    lower = name.lower()
    return name.startswith((".", "~$")) or lower in _SYSTEM or bool(_STREAM.search(lower))
