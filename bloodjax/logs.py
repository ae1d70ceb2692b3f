"""What a run says while it trains: a progress bar, metrics.jsonl, TensorBoard events.

The one door to rich and tensorboardX.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
from typing import Any

import rich.console
import rich.logging
import rich.progress

from bloodjax import distributed
from bloodjax.files import write_whole

_console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False)


def say(message: str) -> None:
    """Prints one line to the terminal, above a progress bar where there is one.

    Of a run's several processes, the primary one does.
    """
    if distributed.is_primary():
        _console.print(message, markup=False)


def route_warnings() -> None:
    """Sends the library's own warnings to the terminal, above a progress bar."""
    handler = rich.logging.RichHandler(console=_console, show_time=False, show_path=False)
    logger = logging.getLogger("bloodjax")
    logger.handlers = [handler]
    logger.propagate = False


class ProgressBar:
    """A bar with time left; an epoch's with loss, accuracy and images a second too.

    It shows nothing where the output is not a terminal.
    """

    def __init__(self, description: str, steps: int, done: int):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            rich.progress.TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=not (_console.is_terminal and distributed.is_primary()),
        )
        self._task = self._bar.add_task(description, total=steps, completed=done, figures="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def advance(self, done: int) -> None:
        """Shows that so many of the steps are done."""
        self._bar.update(self._task, completed=done)

    def describe(self, description: str) -> None:
        """Changes what the bar says that it is about."""
        self._bar.update(self._task, description=description)

    def update(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Shows that `step` steps of the epoch are done, and the epoch's figures so far."""
        figures = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s"
        self._bar.update(self._task, completed=step, figures=figures)


class MetricsLog:
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
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", encoding="utf-8")
        purge = step + 1 if step else None
        import tensorboardX  # it imports PyTorch where that is installed, which takes a second

        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=purge, write_to_disk=True
        )

    def __enter__(self) -> MetricsLog:
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
            say(f"{path}: line {number} is damaged and left out")
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
