"""Lists and reads the files of a folder or a zip file through one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

from bloodjax.errors import UserError

# Largest unpacked size of a zip and of one member, in bytes: kilobytes can unpack to terabytes.
MAX_UNPACKED = 16 * 2**30
MAX_MEMBER = 2**30

# Deeper than any supported layout of images; it also ends loops of symbolic links.
MAX_DEPTH = 6

# Errors that `zipfile` raises for damaged data, apart from ValueError.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError)

_JUNK = {"__macosx", "desktop.ini", "thumbs.db"}


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files of a folder or zip, without hidden files and metadata of operating systems.

    Attributes:
      files: Path of each file, sorted; "/" separates folders.
      folders: Path of each folder, including empty ones.
      read: Returns the content of the file at a path; several threads may call it at once. It
        raises ValueError if the file is damaged or cannot be read.
    """

    files: tuple[str, ...]
    folders: frozenset[str]
    read: Callable[[str], bytes]


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


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens a zip file, such as an npz, after checking that unpacking it is safe.

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
        raise UserError(f"{path}: {found}, expected a complete .npz or .zip") from error
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
    members = {_normal(info.filename): info for info in zipped.infolist()}
    files, folders = [], set()
    for name, info in sorted(members.items()):
        if not _is_junk(name):
            is_folder = info.filename.endswith(("/", "\\"))
            folders.add(name if is_folder else str(pathlib.PurePosixPath(name).parent))
            if not is_folder:
                files.append(name)

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

    return Archive(tuple(files), _with_parents(folders), read)


def _folder(root: pathlib.Path) -> Archive:
    files, folders = [], set()

    def raise_user_error(error: OSError):
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for where, subfolders, names in os.walk(root, onerror=raise_user_error, followlinks=True):
        here = pathlib.Path(where).relative_to(root)
        folders.add(here.as_posix())
        files += [(here / name).as_posix() for name in names if not _is_junk(name)]
        too_deep = len(here.parts) == MAX_DEPTH
        subfolders[:] = [name for name in subfolders if not (too_deep or _is_junk(name))]

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error

    return Archive(tuple(sorted(files)), _with_parents(folders), read)


def _with_parents(folders: set[str]) -> frozenset[str]:
    parents = {str(parent) for name in folders for parent in pathlib.PurePosixPath(name).parents}
    return frozenset((folders | parents) - {"."})


def _normal(name: str) -> str:
    return str(pathlib.PurePosixPath(name.replace("\\", "/")))


def _is_junk(path: str) -> bool:
    return any(part.startswith(".") or part.lower() in _JUNK for part in path.split("/"))
