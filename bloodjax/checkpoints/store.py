"""Checkpoints as they lie on the disk, a folder for each step: which of them are whole.

A checkpoint's progress holds the number of its format. `checksums.json`, its name and what is in
it, stays the same in every format, so that a later one is told from a broken one.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from typing import Any

from bloodjax.checkpoints import integrity
from bloodjax.cli import console
from bloodjax.errors import UserError

FORMAT = 1
_BROKEN = "broken"
_NUMBER = re.compile(r"0|[1-9][0-9]*")


class CheckpointStore:
    """The steps' folders in one folder, which need not exist.

    Each is checked once, when it is first asked for. A broken one is named and, unless the folder
    is only read, moved to `broken/`: otherwise it would be taken for the latest again.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool):
        self._directory, self._read_only = directory, read_only
        self._whole: dict[int, bool] = {}

    def latest(self, before: int | None = None) -> int | None:
        """The newest step that is whole, of all or of those below `before`; or None.

        Raises:
          UserError: the newest is of a later format, or may not be read.
        """
        steps = (step for step in self._steps() if before is None or step < before)
        return next(filter(self.is_valid, steps), None)

    def is_valid(self, step: int) -> bool:
        """Whether the step's folder is there, and as it was written.

        Raises:
          UserError: it is of a later format, or may not be read.
        """
        if step not in self._whole:
            self._whole[step] = self.folder(step).is_dir() and self._proves_itself(step)
        return self._whole[step] and self.folder(step).is_dir()

    def written(self, step: int) -> None:
        """Notes that this process has just written the step."""
        self._whole[step] = True

    def folder(self, step: int) -> pathlib.Path:
        """Where the step lies, if it is there."""
        return self._directory / str(step)

    def progress(self, step: int) -> dict[str, Any]:
        """What a step that is whole holds as its progress."""
        stored = _progress(self.folder(step))
        stored.pop("format", None)
        return stored

    def _steps(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if _NUMBER.fullmatch(name)), reverse=True)

    def _proves_itself(self, step: int) -> bool:
        folder = self.folder(step)
        try:
            _check(folder)
        except integrity.CorruptionError as broken:
            line = f"the checkpoint {folder} is broken: {broken}"
            console.log_info(
                line if self._read_only else f"{line}; it is now in {_set_aside(folder)}"
            )
            return False
        except PermissionError as error:
            raise UserError(f"{error.filename}: {error.strerror}, expected to read it") from error
        return True


def _check(folder: pathlib.Path) -> None:
    """Raises CorruptionError where the step's folder is not whole, UserError where it is of later times.

    Before there were formats there were no checksums either: such a checkpoint is taken as it is.
    """
    if not (folder / integrity.FILE).exists():
        try:
            earlier = "format" not in _progress(folder)
        except ValueError:
            raise integrity.CorruptionError("its progress cannot be read") from None
        except FileNotFoundError:
            raise integrity.CorruptionError(
                f"{integrity.FILE} and its progress are missing"
            ) from None
        if earlier and (folder / "state").is_dir():
            return
    integrity.check(folder)
    found = _progress(folder).get("format")
    if found != FORMAT:
        raise UserError(
            f"{folder}: a checkpoint of format {found}, expected {FORMAT}: another version of "
            "bloodjax wrote it, which can go on with it"
        )


def _progress(folder: pathlib.Path) -> dict[str, Any]:
    content = json.loads((folder / "progress" / "metadata").read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{folder}: its progress is {content!r}, expected an object")
    return content


def _set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Moves a step's folder to where it is not taken for one; returns where."""
    aside = folder.parent / _BROKEN / folder.name
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    return folder.rename(aside)
