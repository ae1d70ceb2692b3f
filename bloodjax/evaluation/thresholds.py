"""The probabilities from which on labels count as predicted, and `thresholds.json`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from bloodjax.io.files import atomic_write, read_json

FILE = "thresholds.json"


def write(workdir: pathlib.Path, classes: Sequence[str], thresholds: Sequence[float]) -> None:
    """Writes `thresholds.json`: the name of each label -> its threshold."""
    content = dict(zip(classes, thresholds, strict=True))
    atomic_write(workdir / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load(workdir: pathlib.Path, classes: Sequence[str]) -> tuple[float, ...]:
    """The thresholds in label order; () if the run has no such file.

    Raises:
      UserError: The file is damaged, or is of other labels.
    """
    path = workdir / FILE
    if not path.exists():
        return ()

    def parse(content: Mapping[str, float]) -> tuple[float, ...]:
        if set(content) != set(classes):
            raise ValueError(f"labels {', '.join(content)}")
        found = tuple(float(content[name]) for name in classes)
        if not all(0 <= value <= 1 for value in found):
            raise ValueError(f"thresholds {found}")
        return found

    return read_json(path, "a threshold in 0..1 for each label", parse)
