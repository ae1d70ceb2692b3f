"""Checksums of a folder's files, by which it proves later that it is whole.

They stand in the folder, in `checksums.json`: a line of JSON with each file's size and SHA-256, and
a line with the SHA-256 of the first, so that they prove themselves too. The file is the last that
is written; a folder without it is one whose writing was cut short.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

from bloodjax.io.files import atomic_write

FILE = "checksums.json"


class CorruptionError(Exception):
    """A folder is not as it was written; the message names the file and what is wrong with it."""


def write(folder: pathlib.Path) -> None:
    """Writes `checksums.json` for the files that are in `folder` now, at any depth."""
    files = {name: _print(folder / name) for name in _names(folder)}
    content = json.dumps({"files": files}, sort_keys=True)
    atomic_write(folder / FILE, f"{content}\n{_digest(content)}\n")


def check(folder: pathlib.Path) -> None:
    """Compares the files in `folder` with their checksums; further files do not count.

    Raises:
      CorruptionError: a file is missing, is shorter or longer, has other bytes or cannot be read; or
        `checksums.json` is, or has.
      PermissionError: this user may not read one.
    """
    for name, expected in _read(folder)["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise CorruptionError(f"{name} has {size:,} bytes, expected {expected['bytes']:,}")
            if _print(path) != expected:
                raise CorruptionError(f"{name} has other bytes than were written")
        except FileNotFoundError:
            raise CorruptionError(f"{name} is missing") from None
        except PermissionError:
            raise
        except OSError as error:
            raise CorruptionError(f"{name} cannot be read: {error.strerror}") from error


def _read(folder: pathlib.Path) -> dict:
    try:
        content, digest, rest = (folder / FILE).read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise CorruptionError(f"{FILE}, which is written last, is missing") from None
    except ValueError:  # no text, or not of these lines
        raise CorruptionError(f"{FILE} has other bytes than were written") from None
    if digest != _digest(content) or rest:
        raise CorruptionError(f"{FILE} has other bytes than were written")
    return json.loads(content)


def _names(folder: pathlib.Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted({path.relative_to(folder).as_posix() for path in files} - {FILE})


def _print(path: pathlib.Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
