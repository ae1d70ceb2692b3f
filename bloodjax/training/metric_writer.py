"""A run's history: `metrics.jsonl` and TensorBoard events. The one door to tensorboardX."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.io.files import atomic_write


class MetricWriter:
    """A run's history: lines in `metrics.jsonl`, and the same scalars as TensorBoard events.

    Of a run's several processes, the primary one writes it.
    """

    def __init__(self, workdir: pathlib.Path, step: int, *, unfinished: bool = False):
        """Opens the log; what it holds of later steps than `step` will be trained again.

        With `unfinished`, the epoch that ends at `step` will be validated again, too.
        """
        self._writes = distributed.is_primary()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"

        def stays(entry: dict[str, Any]) -> bool:
            again = unfinished and entry["event"] == "epoch"
            return entry["step"] < step or (entry["step"] == step and not again)

        kept = [entry for entry in read_history(workdir) if stays(entry)]
        atomic_write(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", encoding="utf-8")
        purge = step + 1 if step else None
        import tensorboardX  # it imports PyTorch where that is installed, which takes a second

        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=purge, write_to_disk=True
        )

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry, which has an int `step`; numbers in it, nested too, become scalars."""
        if not self._writes:
            return
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # the checkpoint that counts on it comes after it
        for name, value in _scalars(entry):
            self._events.add_scalar(name, value, entry["step"])
        self._events.flush()


def read_history(workdir: pathlib.Path, event: str = "") -> list[dict[str, Any]]:
    """The entries of `metrics.jsonl`; a last line that was cut short is left out.

    So is a line before it that is damaged, but that is said.

    Args:
      workdir: of the run.
      event: which ones alone: epoch, skipped or rollback; empty for all.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], 1):  # after the last whole one nothing follows
        try:
            entry = json.loads(line)
            entries.append({**entry, "step": int(entry["step"]), "event": str(entry["event"])})
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
            console.log_info(f"{path}: line {number} is damaged and left out")
    return [entry for entry in entries if event in ("", entry["event"])]


def epoch_line(entry: dict[str, Any]) -> str:
    """An epoch's entry of the history in a line."""
    line = (
        f"epoch {entry['epoch']} ({entry['phase']}): loss {entry['train']['loss']:.4f}, "
        f"accuracy {entry['train']['accuracy']:.4f}"
    )
    for part, title in (("validation", "validation"), ("validation_distorted", "distorted")):
        if part in entry:
            line += f"; {title} loss {entry[part]['loss']:.4f}, "
            line += f"accuracy {entry[part]['accuracy']:.4f}"
        if f"{part}_raw" in entry:
            line += f" (of the raw weights {entry[f'{part}_raw']['accuracy']:.4f})"
    return f"{line}; {entry['train']['images_per_second']:,.0f} images/s"


def _scalars(entry: dict[str, Any], prefix: str = ""):
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "step":
            yield prefix + key, value
