"""The log of a run: `metrics.jsonl` and its trackers. The only module with tensorboardX."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.io.files import atomic_write
from bloodjax.tracking import TrackerGroup


class MetricWriter:
    """Writes the log of a run: lines in `metrics.jsonl`, and the same scalars for its trackers.

    In a run of several processes, only the primary one writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        *,
        unfinished: bool = False,
        tensorboard: bool = True,
        trackers: TrackerGroup | None = None,
    ):
        """Opens the log, and removes the entries of steps that will be repeated.

        Trackers get the entries that are kept, too: they may lack some.

        Args:
          workdir: Folder of the run.
          step: Step that the run resumes from; later entries are removed.
          unfinished: Whether the epoch that ends at `step` will be validated again.
          tensorboard: Whether to write TensorBoard's events.
          trackers: Other trackers.
        """
        self._writes = distributed.is_primary()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"

        def is_kept(entry: dict[str, Any]) -> bool:
            repeated = unfinished and entry["event"] in ("epoch", "skipped")
            return entry["step"] < step or (entry["step"] == step and not repeated)

        kept = [entry for entry in read_history(workdir) if is_kept(entry)]
        atomic_write(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", encoding="utf-8")
        self._trackers, self._events = trackers or TrackerGroup(), None
        for entry in kept:
            self._track(entry)
        if not tensorboard:
            return
        purge = step + 1 if step else None
        import tensorboardX  # imports PyTorch if that is installed, which takes a second

        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=purge, write_to_disk=True
        )

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._file.close()
            if self._events is not None:
                self._events.close()

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry with an int `step`. Numbers in it, also nested ones, become scalars."""
        if not self._writes:
            return
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # the checkpoint of this step is written after it
        if self._events is not None:
            for name, value in _scalars(entry):
                self._events.add_scalar(name, value, entry["step"])
            self._events.flush()
        self._track(entry)

    def _track(self, entry: dict[str, Any]) -> None:
        prefix = "" if entry["event"] == "epoch" else f"{entry['event']}/"
        values = {name: float(value) for name, value in _scalars(entry, prefix)}
        self._trackers.log_metrics(values, entry["step"])


def read_history(workdir: pathlib.Path, event: str = "") -> list[dict[str, Any]]:
    """Reads the entries of `metrics.jsonl`.

    A last line that was cut short is skipped. Another damaged line is skipped and logged.

    Args:
      workdir: Folder of the run.
      event: Only entries of this event: epoch, skipped or rollback; empty for all.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut short
        try:
            entry = json.loads(line)
            entries.append({**entry, "step": int(entry["step"]), "event": str(entry["event"])})
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
            console.log_info(f"{path}: line {number} is damaged and was skipped")
    return [entry for entry in entries if event in ("", entry["event"])]


def epoch_line(entry: dict[str, Any]) -> str:
    """One line of text for the log entry of an epoch."""
    line = (
        f"epoch {entry['epoch']} ({entry['phase']}): loss {entry['train']['loss']:.4f}, "
        f"accuracy {entry['train']['accuracy']:.4f}"
    )
    for split, title in (("validation", "validation"), ("validation_distorted", "distorted")):
        if split in entry:
            line += f"; {title} loss {entry[split]['loss']:.4f}, "
            line += f"accuracy {entry[split]['accuracy']:.4f}"
        if f"{split}_raw" in entry:
            line += f" (of the raw weights {entry[f'{split}_raw']['accuracy']:.4f})"
    rate = entry["train"]["images_per_second"]
    if not rate:  # the epoch was trained before the run was resumed
        return line
    return f"{line}; {rate:,.{0 if rate >= 10 else 1}f} images/s"


def _scalars(entry: dict[str, Any], prefix: str = ""):
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "step":
            yield prefix + key, value
