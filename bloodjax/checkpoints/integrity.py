"""Which checkpoints on disk are valid: checksums of their files, and the format of their content.

Each step has a folder. `checksums.json` in it has two lines: JSON with the size and the SHA-256 of
every other file, and the SHA-256 of that line. It is written last, so a folder without it is one
whose writing was cut short. Its name and content are the same in every format, so that a later
format can be told from corruption.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import shutil
from typing import Any

from bloodjax.cli import console
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write

FILE = "checksums.json"
# Format 2 has other keys in the progress than format 1 (`state.RunProgress.from_json` reads both).
FORMAT = 2
_READABLE = (1, 2)
_ASIDE = "broken"
_REPLACED = "replaced"
_STEP = re.compile(r"0|[1-9][0-9]*")


class CorruptionError(Exception):
    """A folder is not as it was written. The message names the file and what is wrong with it."""


class CheckpointStore:
    """The steps' folders in one folder, which need not exist.

    Each step is verified once, when it is first asked for. A corrupt one is logged and, unless the
    store is read-only, moved to `broken/`, so that it is not verified at every start.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool):
        """Verifies nothing yet.

        Args:
          directory: Folder of the checkpoints.
          read_only: Whether to leave corrupt checkpoints where they are.
        """
        self._directory, self._read_only = directory, read_only
        self._valid: dict[int, bool] = {}
        if not read_only:
            self._put_back()

    def latest(self, before: int | None = None) -> int | None:
        """The newest valid step, of all or of those below `before`; or None.

        Raises:
          UserError: A checkpoint has a later format, or may not be read.
        """
        steps = (step for step in self._steps() if before is None or step < before)
        return next(filter(self.is_valid, steps), None)

    def is_valid(self, step: int) -> bool:
        """Whether the step's folder exists and is as it was written.

        Raises:
          UserError: It has a later format, or may not be read.
        """
        if step not in self._valid:
            self._valid[step] = self.folder(step).is_dir() and self._verify(step)
        return self._valid[step] and self.folder(step).is_dir()

    def written(self, step: int) -> None:
        """Records that this process has just written the step."""
        self._valid[step] = True

    def set_aside(self, step: int) -> None:
        """Moves the step's folder away, to be replaced by another one of the same step.

        If the new folder is never completed, the next store of this directory puts the old one
        back.
        """
        aside = self._directory / _REPLACED / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        self.folder(step).rename(aside)

    def replaced(self) -> None:
        """Deletes the folder that was set aside, because the new one is complete."""
        shutil.rmtree(self._directory / _REPLACED, ignore_errors=True)

    def _put_back(self) -> None:
        """Puts back what a process that has ended set aside, unless its replacement is complete."""
        aside = self._directory / _REPLACED
        for old in aside.iterdir() if aside.is_dir() else ():
            new = self._directory / old.name
            if not (new / FILE).exists():
                shutil.rmtree(new, ignore_errors=True)
                old.rename(new)
        self.replaced()

    def folder(self, step: int) -> pathlib.Path:
        """Folder of the step, whether or not it exists."""
        return self._directory / str(step)

    def progress(self, step: int) -> dict[str, Any]:
        """The progress of a valid step, as its file has it."""
        stored = _progress(self.folder(step))
        stored.pop("format", None)
        return stored

    def _steps(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if _STEP.fullmatch(name)), reverse=True)

    def _verify(self, step: int) -> bool:
        folder = self.folder(step)
        try:
            _check_step(folder)
        except CorruptionError as error:
            line = f"the checkpoint {folder} is corrupt: {error}"
            if not self._read_only:
                line += f"; it was moved to {_move_aside(folder)}"
            elif not (folder / FILE).exists():
                line = f"the checkpoint {folder} is not complete, or is being written: {error}"
            console.log_info(line)
            return False
        except PermissionError as error:
            raise UserError(f"{error.filename}: {error.strerror}, expected to read it") from error
        return True


def write(folder: pathlib.Path) -> None:
    """Writes `checksums.json` for the files that are in `folder` now, at any depth."""
    files = {name: _size_and_hash(folder / name) for name in _names(folder)}
    content = json.dumps({"files": files}, sort_keys=True)
    atomic_write(folder / FILE, f"{content}\n{_hash(content)}\n")


def check(folder: pathlib.Path) -> None:
    """Compares the files in `folder` with their checksums. Additional files do not matter.

    Raises:
      CorruptionError: `checksums.json` or a file that it lists is missing, cannot be read, or has
        another size or content.
      PermissionError: The user may not read a file.
    """
    for name, expected in _read(folder)["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise CorruptionError(f"{name} has {size:,} bytes, expected {expected['bytes']:,}")
            if _size_and_hash(path) != expected:
                raise CorruptionError(f"{name} has other bytes than were written")
        except FileNotFoundError:
            raise CorruptionError(f"{name} is missing") from None
        except PermissionError:
            raise
        except OSError as error:
            raise CorruptionError(f"{name} cannot be read: {error.strerror}") from error


def _check_step(folder: pathlib.Path) -> None:
    """Raises CorruptionError if the step is corrupt, UserError if it has a later format.

    The first checkpoints had neither a format nor checksums. They are taken as they are.
    """
    if not (folder / FILE).exists():
        try:
            without_format = "format" not in _progress(folder)
        except ValueError:
            raise CorruptionError("its progress cannot be read") from None
        except FileNotFoundError:
            raise CorruptionError(f"{FILE} and its progress are missing") from None
        if without_format and (folder / "state").is_dir():
            return
    check(folder)
    found = _progress(folder).get("format")
    if found not in _READABLE:
        raise UserError(
            f"{folder}: a checkpoint of format {found}, expected at most {FORMAT}: another version "
            "of bloodjax wrote it and can resume it"
        )


def _progress(folder: pathlib.Path) -> dict[str, Any]:
    content = json.loads((folder / "progress" / "metadata").read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{folder}: its progress is {content!r}, expected an object")
    return content


def _move_aside(folder: pathlib.Path) -> pathlib.Path:
    """Moves a step's folder to `broken/`, so that it is no step any more; returns its new path."""
    aside = folder.parent / _ASIDE / folder.name
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    return folder.rename(aside)


def _read(folder: pathlib.Path) -> dict:
    try:
        content, digest, rest = (folder / FILE).read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise CorruptionError(f"{FILE}, which is written last, is missing") from None
    except ValueError:  # not UTF-8, or not three lines
        raise CorruptionError(f"{FILE} has other bytes than were written") from None
    if digest != _hash(content) or rest:
        raise CorruptionError(f"{FILE} has other bytes than were written")
    return json.loads(content)


def _names(folder: pathlib.Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted({path.relative_to(folder).as_posix() for path in files} - {FILE})


def _size_and_hash(path: pathlib.Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
