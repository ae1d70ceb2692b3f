"""The terminal: log lines and progress bars. The one door to rich."""

from __future__ import annotations

import logging

import rich.console
import rich.logging
import rich.progress

from bloodjax import distributed

_console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False)


def log_info(message: str) -> None:
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
