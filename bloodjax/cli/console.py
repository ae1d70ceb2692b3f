"""The terminal or notebook: log lines and progress bars. The one door to rich.

All output goes through the logger "bloodjax". Its lines are at level INFO, so that
`logging.getLogger("bloodjax").setLevel(logging.WARNING)` silences both lines and bars.
"""

from __future__ import annotations

import html
import logging
import time
import unicodedata
from typing import Any, ClassVar, SupportsIndex

import rich.console
import rich.progress

from bloodjax import distributed
from bloodjax.io import message_urls


class _Console(rich.console.Console):
    """A console that leaves a closed pipe to `command.run`; rich's ends the process with 1."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this where it handles the BrokenPipeError


_console = _Console(stderr=True, soft_wrap=True, highlight=False)
_log = logging.getLogger("bloodjax")


class _LineHandler(logging.Handler):
    """Prints records above a progress bar: plain at INFO, with the level's name above it."""

    def emit(self, record: logging.LogRecord) -> None:
        # `Stopped` is not caught here: a signal may raise it at any point.
        line = _printable(self.format(record))
        if record.levelno > logging.INFO:
            line = f"{record.levelname.lower()}: {line}"
        if _console.is_jupyter:
            print(line)  # a line of the cell's text; rich would make an element of each
            return
        try:
            _console.print(line, markup=False, emoji=False)
        except BrokenPipeError:  # `command.run` ends the process
            raise
        except OSError:  # a full disk or a closed terminal loses the line, and not the run
            pass


def show_lines() -> None:
    """Shows lines and bars of the logger "bloodjax" on stderr or in the notebook; for commands."""
    _log.handlers = [_LineHandler()]
    _log.propagate = False
    _log.setLevel(logging.INFO)


def show_lines_by_default() -> None:
    """`show_lines`, unless the application handles these lines itself; for library functions.

    It does, if the logger "bloodjax" has a handler, or if the root logger has one and the level of
    either logger was set for it: of "bloodjax" to any level, or of the root to INFO or below.
    A level that was set stays.
    """
    root, level = logging.getLogger(), _log.level
    by_root = root.handlers and (level != logging.NOTSET or root.level <= logging.INFO)
    if _log.handlers or by_root:
        return
    show_lines()
    _log.setLevel(level or logging.INFO)


def log_info(message: str) -> None:
    """Logs one line at level INFO, in the run's primary process only."""
    if distributed.is_primary():
        _log.info(message_urls.with_urls(message), stacklevel=2)


def counted(n: SupportsIndex, singular: str, plural: str = "") -> str:
    """`n` with its noun: "1 image", "1,200 images".

    Args:
      n: The number.
      singular: The noun for 1.
      plural: The noun for other numbers; by default `singular` with an s.
    """
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


class ProgressBar:
    """A bar with the time left; an epoch's also with loss, accuracy and images per second.

    It is shown only where `show_lines` shows lines at level INFO, on a terminal or in a notebook.
    """

    def __init__(self, description: str, steps: int, done: int):
        shown = _shows_lines() and distributed.is_primary()
        self._time = rich.progress.TimeRemainingColumn()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            self._time,
            console=_console,
            transient=True,
            disable=not (shown and _console.is_terminal) or _console.is_jupyter,
        )
        self._task = self._bar.add_task(description, total=steps, completed=done, figures="")
        self._cell = _NotebookCell() if shown and _console.is_jupyter else None

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        self._update()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()
        if self._cell is not None:
            self._cell.clear()

    def advance(self, done: int) -> None:
        """Sets the number of steps that are done."""
        self._update(completed=done)

    def describe(self, description: str) -> None:
        """Changes the bar's description."""
        self._update(description=description)

    def update(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Sets the number of steps done in the epoch, and the epoch's figures so far."""
        figures = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s"
        self._update(completed=step, figures=figures)

    def _update(self, **changes) -> None:
        self._bar.update(self._task, **changes)
        if self._cell is not None:
            task = self._bar.tasks[0]
            done, total = int(task.completed), int(task.total)
            words = (f"{done}/{total}", task.fields["figures"], self._time.render(task).plain)
            self._cell.show(task.description, done, total, "  ".join(filter(None, words)))


class _NotebookCell:
    """A place for bars in the output of a notebook's cell, replaced in place.

    rich's own needs the package ipywidgets, and repeats the bar with every line. All bars of one
    execution of a cell share a place, as each leaves an empty line.
    """

    _EVERY = 0.2  # seconds
    _places: ClassVar[dict[int, Any]] = {}  # execution -> IPython's handle; the last one only

    def __init__(self):
        from IPython import get_ipython
        from IPython.display import display

        execution, self._next = get_ipython().execution_count, 0.0
        if execution not in self._places:
            self._places.clear()
            self._places[execution] = display({"text/plain": ""}, raw=True, display_id=True)
        self._handle = self._places[execution]

    def show(self, description: str, done: int, total: int, text: str) -> None:
        """Shows these values, unless the last ones are too recent."""
        if time.monotonic() < self._next and done < total:
            return
        self._next = time.monotonic() + self._EVERY
        bar = f'<progress value="{done}" max="{total}"></progress>'
        content = {
            "text/html": f"{html.escape(description)} {bar} {html.escape(text)}",
            "text/plain": f"{description}  {text}",
        }
        self._handle.update(content, raw=True)

    def clear(self) -> None:
        """Removes the bar."""
        self._handle.update({"text/plain": ""}, raw=True)


def _printable(text: str) -> str:
    r"""`text` with what a terminal would obey or could not encode as escapes, such as \x1b."""

    def shown(character: str) -> str:
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs"):
            return character
        return ascii(character)[1:-1]

    return text if text.isprintable() else "".join(map(shown, text))


def _shows_lines() -> bool:
    ours = any(isinstance(handler, _LineHandler) for handler in _log.handlers)
    return ours and _log.isEnabledFor(logging.INFO)
