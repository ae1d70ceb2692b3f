"""Which record of a tracker belongs to a run, and what the record already has."""

from __future__ import annotations

import json
import pathlib
import secrets

from bloodjax.io.files import atomic_write


class Record:
    """`WORKDIR/tracking/NAME.json`: with it, a resumed run continues the same record.

    Attributes:
      key: Random name that the run gives its record before the tracker knows of it.
      is_new: Whether this start of the run made `key`.
      id: The tracker's id of the record, or "" before it has one.
    """

    def __init__(self, path: pathlib.Path, target: str):
        """Reads the file; a damaged one, or one of another target, counts as missing.

        Args:
          path: The file.
          target: The tracker's server or store. A record of another one is not continued.
        """
        self._path, self._target = path, target
        try:
            content = json.loads(path.read_text("utf-8"))
            known = content["target"] == target
            self.key, self.id = str(content["key"]), str(content["id"])
            self._sent = {str(digest) for digest in content["sent"]}
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        self.is_new = not known
        if self.is_new:
            self.key, self.id, self._sent = secrets.token_hex(4), "", set()
            self._write()

    def __len__(self) -> int:
        """Number of items that the record has."""
        return len(self._sent)

    def __contains__(self, digest: str) -> bool:
        """Whether the record has the item with this digest."""
        return digest in self._sent

    def set_id(self, record_id: str) -> None:
        """Keeps the tracker's id of the record."""
        if record_id != self.id:
            self.id = record_id
            self._write()

    def add(self, digest: str) -> None:
        """Keeps that the record has an item."""
        self._sent.add(digest)
        self._write()

    def _write(self) -> None:
        content = {
            "target": self._target,
            "key": self.key,
            "id": self.id,
            "sent": sorted(self._sent),
        }
        atomic_write(self._path, json.dumps(content, indent=2) + "\n")
