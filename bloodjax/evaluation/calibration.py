"""The calibrations of a run and `calibration.json`, which keeps them.

A run has a calibration for its default views ("default") and one for no views ("none"), because
averaging over views makes probabilities less confident. Other views use the default's.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics.calibration import Calibration
from bloodjax.metrics.label_calibration import LabelCalibration

FILE = "calibration.json"
DEFAULT, NO_VIEWS = "default", "none"
# What a calibration applies to -> the calibration.
Calibrations = Mapping[str, Calibration]


def write(workdir: pathlib.Path, calibrations: Calibrations, details: Mapping[str, Any]) -> None:
    """Writes `calibration.json`.

    Args:
      workdir: Folder of the run.
      calibrations: From "default" and "none".
      details: What the file has for people: views, number of images, scores before and after.
    """
    content = {name: found.to_dict() for name, found in calibrations.items()}
    atomic_write(workdir / FILE, json.dumps({**content, "fit": dict(details)}, indent=2) + "\n")


def load(workdir: pathlib.Path) -> dict[str, Calibration]:
    """The calibrations in `calibration.json`; empty if the run has no such file.

    Raises:
      UserError: The file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return {}
    return read_json(path, "the calibrations default and none", _from_json)


def _from_json(content: Any) -> dict[str, Calibration]:
    return {name: from_dict(content[name]) for name in (DEFAULT, NO_VIEWS)}


def from_dict(content: Mapping[str, Any]) -> Calibration:
    """A calibration of class probabilities, or of those of labels, from its `to_dict`.

    Raises:
      KeyError: A field is missing.
      ValueError: A value is not allowed.
    """
    kind = LabelCalibration if content.get("output") == "sigmoid" else Calibration
    return kind.from_dict(content)
