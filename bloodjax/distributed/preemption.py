"""SIGINT and SIGTERM as a wish that the run grants when it can, within a time of grace.

The first signal is noted: a training step is finished and the state saved, which the loop sees to;
what leaves nothing to save is given up at once (`ShutdownRequest.interruptible`). Where that takes longer than the
time of grace, or at a second signal, the process ends on the spot. All ways out have one status,
128 + signal.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import gc
import os
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator

from bloodjax.errors import Stopped

GRACE_SECONDS = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How often the watch looks for a signal of which only the main thread was told.
_LOOK_SECONDS = 0.5
# After which a signal that should have broken something off, and has not, is told again.
_AGAIN_SECONDS = 2.0


@dataclasses.dataclass
class ShutdownRequest:
    """Whether the run is to stop.

    Attributes:
      signal: the number of the signal that came, or 0.
      unsaved: says, in a few words, what is lost if the process ends now.
      alone: whether this is the run's one process; several stop together, at a training step.
    """

    signal: int = 0
    unsaved: Callable[[], str] = lambda: "nothing was to be saved"
    alone: bool = True
    _interrupts: str | None = None

    @contextlib.contextmanager
    def interruptible(self, message: str) -> Iterator[None]:
        """Raises `Stopped` with `message` as soon as a signal comes, or if one has come already.

        For work that leaves nothing to save, and may be broken off anywhere; not by one of several
        processes, for which the others would wait.
        """
        if not self.alone:
            yield
            return
        outer, self._interrupts = self._interrupts, message
        try:
            if self.signal:
                raise Stopped(message, self.signal)
            yield
        finally:
            self._interrupts = outer

    @property
    def breaks_off(self) -> bool:
        """Whether the main thread is in the midst of what a signal breaks off."""
        return self._interrupts is not None

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = self.signal or number
        if self._interrupts is not None and not _collects_garbage(frame):
            raise Stopped(self._interrupts, self.signal)


@contextlib.contextmanager
def graceful_shutdown(
    grace_seconds: float = GRACE_SECONDS, *, alone: bool = True
) -> Iterator[ShutdownRequest]:
    """Notes the first signal instead of ending the process, and watches over what follows.

    After `grace_seconds`, or at a second signal, the process ends with status 128 + signal and a
    line that says what was not saved. Outside the main thread, where Python cannot catch signals,
    nothing is noted.
    """
    stop = ShutdownRequest(alone=alone)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # Python runs handlers between two operations of the main thread, which may be in compiled code
    # for long. The file descriptor is written to at once, and a thread of its own reads it.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    outer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop._note) for number in _SIGNALS}
    watch = threading.Thread(target=_watch, args=(stop, reader, grace_seconds), daemon=True)
    watch.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:  # it was not Python's
                signal.signal(number, handler)
        signal.set_wakeup_fd(outer)
        writer.close()
        watch.join()
        reader.close()


def _watch(stop: ShutdownRequest, reader: socket.socket, grace_seconds: float) -> None:
    """Ends the process when its time is up; returns when the other end of `reader` is closed."""
    told: list[int] = []
    own, deadline, again = 0, None, 0.0
    while True:
        if select.select([reader], [], [], _LOOK_SECONDS)[0]:
            numbers = reader.recv(64)
            if not numbers:
                return
            told += filter(_SIGNALS.__contains__, numbers)
            if len(told) - own > 1:
                _end(told[0], f"stopped at once by a second signal: {stop.unsaved()}")
        # The main thread may hear of a signal before this one does: it is the same one.
        first = told[0] if told else stop.signal
        if first and deadline is None:
            deadline, again = time.monotonic() + grace_seconds, time.monotonic() + _AGAIN_SECONDS
        if first and stop.breaks_off and time.monotonic() >= again:
            # What the handler raised has been ignored, as where an object is deleted.
            own, again = own + 1, time.monotonic() + _AGAIN_SECONDS
            _thread.interrupt_main(first)
        if first and time.monotonic() >= deadline:
            _end(first, f"stopped after {grace_seconds:g} s of grace: {stop.unsaved()}")


def _collects_garbage(frame: types.FrameType | None) -> bool:
    """Whether the frame is within a callback of Python's garbage collector (JAX has one).

    What is raised there is printed and ignored.
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    return frame is not None


def _end(number: int, message: str) -> None:
    cursor = "\n\x1b[?25h" if os.isatty(2) else ""  # which a progress bar hid
    with contextlib.suppress(OSError):
        # Past all buffers and locks that the main thread may hold.
        os.write(2, f"{cursor}{message}\n".encode())
    os._exit(128 + number)
