"""Flags of benchmarks that train, names of devices, and files of results."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import re
from typing import Any


def parse_with_overrides(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line of a benchmark that trains: its flags, and `--config.key=value`.

    Args:
      parser: Has a flag `--seeds`, numbers joined by commas, which becomes a list.

    Returns:
      The flags, and `key=value` of each override.
    """
    chosen, rest = parser.parse_known_args()
    wrong = [text for text in rest if not text.startswith("--config.")]
    if wrong:
        parser.error(f"unexpected argument {wrong[0]!r}")
    chosen.seeds = [int(seed) for seed in chosen.seeds.split(",")]
    return chosen, [text.removeprefix("--config.") for text in rest]


def device_name(kind: str, device: str) -> str:
    """A device's name: JAX's `device`, or the processor's name if the platform `kind` is "cpu"."""
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
    """Writes the results of a run, with device, date and Python version, to OUT/DEVICE/DATE.json.

    Args:
      out: Folder of all results.
      device: Name of the device, from `device_name`.
      content: The results, ready for JSON.
      prefix: Prefix of the file name.

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
