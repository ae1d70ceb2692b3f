"""Hashes of contents: whether a source is the same data, and whether two images are the same.

A fingerprint follows the bytes of a source's images and the names of their files in the source. It
does not depend on where the source is, on times, or on files that are neither images nor groups.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from bloodjax.data import lazy
from bloodjax.data.formats.archive import open_archive, open_zip
from bloodjax.data.image_types import SUFFIXES
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError

_PREFIX = "blake2b:"
_EARLIER = "sha256:"

# First bytes of encoded images. A file that starts with them counts, whatever its name is.
_MAGIC = (
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"P2", b"P3", b"P5", b"P6"),
)
_MAGIC_BYTES = max(map(len, _MAGIC))

_CHUNK = 2**20  # bytes of a file that are read at once
_FILES_PER_THREAD = 256  # at a time

# What the earlier fingerprint of a folder left out, and how deep it went.
_EARLIER_JUNK = {"__macosx", "desktop.ini", "thumbs.db"}
_EARLIER_DEPTH = 6


def of_archive(path: pathlib.Path) -> str:
    """Fingerprint of a folder or zip: name and hash of each image, and of files with groups.

    Every image of a folder is read. The hash of a file in a zip is the checksum that the zip
    stores, so nothing is unpacked.

    Raises:
      UserError: The source is missing or damaged, or a file cannot be read.
    """
    if path.is_dir():
        with open_archive(path) as archive:
            return _digest(_hash_files(archive.locate, archive.files))
    with open_zip(path) as zipped:
        # ZipInfo.is_dir raises for a name that is empty.
        members = [member for member in zipped.infolist() if not member.filename.endswith("/")]
        return _digest(
            (member.filename.replace("\\", "/"), member.file_size, member.CRC)
            for member in members
            if _counts_by_name(member.filename) or _is_image(_first_bytes(zipped, member))
        )


def of_npz(path: pathlib.Path) -> str:
    """Fingerprint of an npz: name, size and stored checksum of each array. No array is read.

    Raises:
      UserError: The file is missing or damaged.
    """
    with open_zip(path) as zipped:
        entries = sorted((m.filename, m.file_size, m.CRC) for m in zipped.infolist())
    return _earlier_digest(entries)


def of_files(folder: pathlib.Path, names: Sequence[str]) -> str:
    """Fingerprint of files in a folder: name and hash of each. All bytes are read.

    Raises:
      UserError: A file cannot be read.
    """
    return _digest(_hash_files(folder.joinpath, names, all_count=True))


def of_contents(
    where: str, entries: Sequence[tuple[str, tuple]], read: Callable[[str], bytes]
) -> str:
    """Fingerprint of named images and of what is known of each. All bytes are read.

    Args:
      where: The source, for messages.
      entries: Name of each image, and other texts that count.
      read: The bytes of the image of a name; several threads call it at once.

    Raises:
      UserError: An image cannot be read.
    """
    found: list[tuple] = [()] * len(entries)

    def hash_chunk(start: int) -> None:
        for i in range(start, min(start + _FILES_PER_THREAD, len(entries))):
            name, known = entries[i]
            try:
                data = read(name)
            except ValueError as error:
                raise UserError(f"{where}: {name}: {error}") from error
            found[i] = (name, len(data), hashlib.blake2b(data, digest_size=16).hexdigest(), known)

    lazy.run_in_threads(hash_chunk, range(0, len(entries), _FILES_PER_THREAD))
    return _digest(found)


def is_earlier(fingerprint: str) -> bool:
    """Whether a folder, zip or shards have this fingerprint from an earlier version.

    Those of folders and shards cover names and sizes of files, and not their bytes.
    """
    return fingerprint.startswith(_EARLIER)


def earlier_of_archive(path: pathlib.Path) -> str:
    """Fingerprint of a folder or zip as earlier versions computed it.

    Raises:
      UserError: The source is missing or damaged.
    """
    if not path.is_dir():
        return of_npz(path)
    entries = []
    for where, subfolders, names in os.walk(path, followlinks=True):
        here = pathlib.Path(where).relative_to(path)
        entries += [
            ((here / name).as_posix(), os.lstat(os.path.join(where, name)).st_size)
            for name in names
            if not _is_earlier_junk(name)
        ]
        too_deep = len(here.parts) == _EARLIER_DEPTH
        subfolders[:] = [name for name in subfolders if not (too_deep or _is_earlier_junk(name))]
    return _earlier_digest(sorted(entries))


def of_images(images: Images) -> UInt64[np.ndarray, " n"]:
    """A hash of each image's pixels. At most `lazy.AT_ONCE` lazy images are in memory.

    Two of a million different images share a hash with a probability of 3e-8.
    """
    hashes = np.empty(len(images), np.uint64)
    for start in range(0, len(images), lazy.AT_ONCE):
        for i, image in enumerate(images[start : start + lazy.AT_ONCE], start):
            hashes[i] = of_pixels(image)
    return hashes


def of_pixels(image: np.ndarray) -> int:
    """A hash of the pixels of one image, in range(2**64)."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def of_texts(texts: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """A hash of each text, such as the key of a patient, which the hash does not show."""
    digests = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8) for text in texts]
    return np.array([int.from_bytes(each.digest(), "little") for each in digests], np.uint64)


def is_among(
    hashes: UInt64[np.ndarray, " n"], known: UInt64[np.ndarray, " m"]
) -> Bool[np.ndarray, " n"]:
    """Which of the `hashes` are in `known`."""
    return np.isin(hashes, known)


def to_text(hashes: UInt64[np.ndarray, " n"]) -> str:
    """Hashes as compact text, about 11 characters each."""
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def from_text(text: str) -> UInt64[np.ndarray, " n"]:
    """Hashes that `to_text` wrote.

    Raises:
      ValueError: The text is not one that `to_text` returns.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"hashes of images: {error}") from error
    if len(data) % 8:
        raise ValueError("hashes of images: a part of a hash is missing")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def normal_name(name: str) -> str:
    """A file name in the one form that all systems' spellings of it share (Unicode NFC)."""
    return unicodedata.normalize("NFC", name)


def _hash_files(
    locate: Callable[[str], pathlib.Path], names: Sequence[str], *, all_count: bool = False
) -> list[tuple[str, int, str]]:
    """Name, size and hash of each file that counts; `locate` returns the path of a name."""
    found: list[tuple[str, int, str] | None] = [None] * len(names)

    def hash_chunk(start: int) -> None:
        for i in range(start, min(start + _FILES_PER_THREAD, len(names))):
            hashed = _hash_file(locate(names[i]), all_count or _counts_by_name(names[i]))
            found[i] = hashed and (names[i], *hashed)

    lazy.run_in_threads(hash_chunk, range(0, len(names), _FILES_PER_THREAD))
    return [entry for entry in found if entry is not None]


def _hash_file(path: pathlib.Path, counts: bool) -> tuple[int, str] | None:
    """Size and hash of a file; None if it does not count by name and is not an image either."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                if not (counts or size or _is_image(data)):
                    return None
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return (size, digest.hexdigest()) if counts or size else None


def _first_bytes(zipped, member) -> bytes:
    try:
        with zipped.open(member) as file:
            return file.read(_MAGIC_BYTES)
    except Exception:  # zipfile raises any type for damaged members; this one is no image
        return b""


def _counts_by_name(name: str) -> bool:
    stem, suffix = os.path.splitext(os.path.basename(name.lower()))
    return suffix in SUFFIXES or (suffix in (".csv", ".tsv", ".txt") and "group" in stem)


def _is_image(first: bytes) -> bool:
    return first.startswith(_MAGIC)


def _is_earlier_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _EARLIER_JUNK


def _digest(entries: Iterable[tuple]) -> str:
    ordered = sorted((normal_name(name), *rest) for name, *rest in entries)
    return _PREFIX + hashlib.blake2b(repr(ordered).encode(), digest_size=32).hexdigest()


def _earlier_digest(entries: Sequence[tuple]) -> str:
    return _EARLIER + hashlib.sha256(repr(list(entries)).encode()).hexdigest()
