"""Graceful shutdown: on SIGINT or SIGTERM, finish the step, save and exit within a grace period.

The handler only records the first signal; the training loop finishes its step and saves. Work that
leaves nothing to save is aborted with `Stopped` (`ShutdownRequest.interruptible`). After the grace
period, or at a second signal, the process exits immediately. The status is always 128 + signal.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import os
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator

from bloodjax.errors import Stopped, handling_ignored

GRACE_SECONDS = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How often the watch thread checks for a signal that only the main thread received.
_POLL_SECONDS = 0.5
# Seconds after which `Stopped` is raised again if the work that it should have aborted continues.
_RETRY_SECONDS = 2.0
# What `before_exit` was given, while its bodies run.
_BEFORE_EXIT: list[Callable[[], None]] = []


@dataclasses.dataclass
class ShutdownRequest:
    """Whether the run is to stop.

    Attributes:
      signal: The number of the first signal that came, or 0.
      single_process: Whether the run has one process; several stop together, at a training step.
    """

    signal: int = 0
    single_process: bool = True
    _message: str | None = None
    _describe_unsaved: Callable[[], str] = lambda: "nothing was to be saved"

    @contextlib.contextmanager
    def interruptible(self, message: str) -> Iterator[None]:
        """Raises `Stopped(message)` in the body as soon as a signal comes, or if one has come.

        The body must leave nothing to save, and can be aborted anywhere. In a run of several
        processes nothing is raised, because the other processes would wait for this one.
        """
        if not self.single_process:
            yield
            return
        outer, self._message = self._message, message
        try:
            if self.signal:
                raise Stopped(message, self.signal)
            yield
        finally:
            self._message = outer

    def on_immediate_exit(self, describe: Callable[[], str]) -> None:
        """Sets what the process prints if it has to exit immediately.

        Args:
          describe: Returns in a few words what is lost. It is called in another thread.
        """
        self._describe_unsaved = describe

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = self.signal or number
        if self._message is not None:
            raise Stopped(self._message, self.signal)


@contextlib.contextmanager
def graceful_shutdown(
    grace_seconds: float = GRACE_SECONDS, *, single_process: bool = True
) -> Iterator[ShutdownRequest]:
    """Records the first signal instead of ending the process, and watches what follows.

    After `grace_seconds`, or at a second signal, the process exits with status 128 + signal and
    prints what was not saved. Outside the main thread, where Python cannot handle signals, nothing
    is recorded. Within another `graceful_shutdown`, a signal that the body did not act on is the
    other's.

    Args:
      grace_seconds: Seconds from the first signal until the process exits.
      single_process: Whether the run has one process.
    """
    request = ShutdownRequest(single_process=single_process)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # Python runs a handler between two instructions of the main thread, which may be in compiled
    # code for long. The file descriptor is written immediately, and another thread reads it.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    outer_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    outer = {number: signal.signal(number, request._handle) for number in _SIGNALS}
    watch = threading.Thread(target=_watch, args=(request, reader, grace_seconds), daemon=True)
    watch.start()
    try:
        # `_watch` has a `Stopped` that Python ignores raised again.
        with handling_ignored(lambda error: isinstance(error, Stopped)):
            yield request
    finally:
        for number, handler in outer.items():
            if handler is not None:  # Python did not install it
                signal.signal(number, handler)
        signal.set_wakeup_fd(outer_fd)
        writer.close()
        watch.join()
        reader.close()
    # The body has ended as if there were no signal. Where it is a part of something longer, such as
    # a run of a sweep, that has to end too.
    around = outer.get(request.signal)
    if isinstance(getattr(around, "__self__", None), ShutdownRequest):
        signal.raise_signal(request.signal)


def _watch(request: ShutdownRequest, reader: socket.socket, grace_seconds: float) -> None:
    """Ends the process when its time is up; returns when the other end of `reader` is closed."""
    received: list[int] = []
    own, deadline, retry = 0, None, 0.0
    while True:
        if select.select([reader], [], [], _POLL_SECONDS)[0]:
            numbers = reader.recv(64)
            if not numbers:
                return
            received += filter(_SIGNALS.__contains__, numbers)
            if len(received) - own > 1:
                _exit(
                    received[0],
                    f"stopped at once by a second signal: {request._describe_unsaved()}",
                )
        # The main thread may learn of a signal before this one does: it is the same signal.
        first = received[0] if received else request.signal
        if first and deadline is None:
            deadline, retry = time.monotonic() + grace_seconds, time.monotonic() + _RETRY_SECONDS
        if first and request._message is not None and time.monotonic() >= retry:
            # Python or a library ignored what the handler raised.
            own, retry = own + 1, time.monotonic() + _RETRY_SECONDS
            _thread.interrupt_main(first)
        if first and time.monotonic() >= deadline:
            _exit(
                first, f"stopped after {grace_seconds:g} s of grace: {request._describe_unsaved()}"
            )


@contextlib.contextmanager
def before_exit(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` if a second signal, or the end of the grace period, ends the process in the body.

    It must not wait for locks, which the main thread may hold.
    """
    _BEFORE_EXIT.append(act)
    try:
        yield
    finally:
        _BEFORE_EXIT.remove(act)


def _exit(number: int, message: str) -> None:
    for act in _BEFORE_EXIT:
        with contextlib.suppress(Exception):
            act()
    cursor = "\n\x1b[?25h" if os.isatty(2) else ""  # shows the cursor that a progress bar hid
    with contextlib.suppress(OSError):
        # Bypasses all buffers and locks that the main thread may hold.
        os.write(2, f"{cursor}{message}\n".encode())
    os._exit(128 + number)
