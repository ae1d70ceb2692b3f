"""The process of one tracker: `python -m bloodjax.tracking.worker NAME`.

A tracker's library blocks, retries, asks for passwords and ends late. In a process of its own none
of this reaches the run, which sends messages, one JSON object a line, on stdin:

{"open": TrackingOptions}                             first
{"metrics": {...}, "step": n, "digest": text}         a point of several curves
{"results": {...}, "step": n, "digest": text}         final results of the run
{"report": path, "digest": text}, {"model": path, "digest": text}
{"finish": "finished" | "stopped" | "failed"}         last

The answers, on stdout: {"problem": text}, {"working": true} after a problem, and at the end
{"unsent": n}.
If stdin ends without "finish", the run was killed: the process sends what it has, and ends soon.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import importlib
import io
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bloodjax.tracking.options import DOORS, TrackingOptions

# Messages that wait for a tracker that is down. A resumed run sends what was dropped.
_MOST_PENDING = 10_000
# Seconds between two attempts to reach a tracker that is down.
RETRY_SECONDS = 60.0
# Seconds that this process may take after the run was killed.
_LAST_SECONDS = 10.0


class Sender:
    """Sends messages to a tracker, in order, each once over all starts of the run.

    Attributes:
      pending: Messages that the tracker does not have yet.
    """

    def __init__(
        self,
        tracker: Any,
        answer: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """Contacts nobody yet.

        Args:
          tracker: `WandbTracker`, `MlflowTracker`, or another object with their methods.
          answer: Sends an answer to the run.
          clock: Gives the time in seconds.
        """
        self._tracker, self._answer, self._clock = tracker, answer, clock
        self.pending: collections.deque[dict[str, Any]] = collections.deque()
        self._is_open, self._failing, self._next_attempt = False, False, 0.0

    @property
    def is_due(self) -> bool:
        """Whether something is to be sent now."""
        opened_or_pending = bool(self.pending) or not self._is_open
        return opened_or_pending and not (self._failing and self._clock() < self._next_attempt)

    def add(self, message: dict[str, Any]) -> None:
        """Adds a message; drops it if too many are pending."""
        if len(self.pending) < _MOST_PENDING:
            self.pending.append(message)

    def send(self) -> None:
        """Sends the pending messages. If one fails, the next attempt is due in a minute."""
        try:
            if not self._is_open:
                self._tracker.open()
                self._is_open = True
            while self.pending:
                message = self.pending[0]
                # An earlier start of the run may have sent it.
                if message["digest"] not in self._tracker.record:
                    self._send(message)
                    self._tracker.record.add(message["digest"])
                self.pending.popleft()
        except Exception as error:  # of whatever type the library raises
            if not self._failing:
                self._answer({"problem": _one_line(error)})
            self._failing, self._next_attempt = True, self._clock() + RETRY_SECONDS
            return
        if self._failing:
            self._failing = False
            self._answer({"working": True})

    def _send(self, message: dict[str, Any]) -> None:
        if "metrics" in message:
            self._tracker.log_metrics(message["metrics"], message["step"])
        elif "results" in message:
            self._tracker.log_results(message["results"], message["step"])
        elif "report" in message:
            self._tracker.log_report(pathlib.Path(message["report"]))
        else:
            self._tracker.log_model(pathlib.Path(message["model"]))

    def finish(self, status: str) -> None:
        """Sends what is due, closes the record, and answers how much was not sent.

        A tracker that failed within the last minute is not tried again: the run waits.

        Args:
          status: "finished", "stopped" or "failed".
        """
        if self.is_due:
            self.send()
        if self._is_open:
            try:
                self._tracker.close(status)
            except Exception as error:  # of whatever type the library raises
                self._answer({"problem": _one_line(error)})
        self._answer({"unsent": len(self.pending)})


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _read(
    lines: io.TextIOBase, sender: Sender, arrived: threading.Condition, end: list[str]
) -> None:
    """Takes messages as they come, so that the run never waits for this process."""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:  # the run was killed while it wrote
            break
        with arrived:
            if "finish" in message:
                end.append(message["finish"])
            else:
                sender.add(message)
            arrived.notify()
    with arrived:
        if not end:
            end.append("stopped")
            timer = threading.Timer(_LAST_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()
        arrived.notify()


def main(name: str, stdin: io.TextIOBase, stdout: io.TextIOBase) -> None:
    """Sends what arrives on `stdin`, until it ends.

    Args:
      name: Name of the tracker.
      stdin: Messages.
      stdout: Where answers are written.
    """

    def answer(content: dict[str, Any]) -> None:
        try:
            stdout.write(json.dumps(content) + "\n")
            stdout.flush()
        except OSError:  # the run has ended
            pass

    options = TrackingOptions(**json.loads(stdin.readline())["open"])
    _, module, tracker_class = DOORS[name]
    create = getattr(importlib.import_module(module), tracker_class)
    folder = pathlib.Path(options.folder)
    with (folder / f"{name}.lock").open("a", encoding="utf-8") as lock:
        # The process of an earlier start of the run may still be ending.
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        tracker = create(options, folder / f"{name}.json")
        sender, arrived, end = Sender(tracker, answer), threading.Condition(), []
        reader = threading.Thread(target=_read, args=(stdin, sender, arrived, end), daemon=True)
        reader.start()
        while not end:
            if sender.is_due:
                sender.send()
            with arrived:
                if not end and not sender.is_due:
                    arrived.wait(RETRY_SECONDS)
        sender.finish(end[0])


if __name__ == "__main__":
    # A terminal or a scheduler signals all processes of a run; this one ends when the run does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What the libraries print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.argv[1], sys.stdin, answers)
    os._exit(0)  # the library's threads and hooks may wait for a server
