"""Names of devices, and the files of results."""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
import re
from typing import Any


def device_name(kind: str, device: str) -> str:
    """A device's name: JAX's own `device`, or on a platform of `kind` "cpu" the processor's."""
    if kind != "cpu":
        return device
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text())
    return f"{len(names)}x {names[0]}" if names else platform.machine()


def write(
    out: pathlib.Path, device: str, content: dict[str, Any], prefix: str = ""
) -> pathlib.Path:
    """Writes one run's results, with device, date and Python's version, to `out/DEVICE/DATE.json`.

    Args:
      out: the folder of all results.
      device: as from `device_name`.
      content: what can be written as JSON.
      prefix: stands before the date.

    Returns:
      The file.
    """
    folder = out / re.sub(r"\W+", "_", device).strip("_").lower()
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    path = folder / f"{prefix}{now:%Y-%m-%d_%H%M%S}.json"
    about = {"device": device, "date": f"{now:%Y-%m-%d}", "python": platform.python_version()}
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n")
    return path
