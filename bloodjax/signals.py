"""SIGINT and SIGTERM as a wish that the training loop grants when it can."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass
class Stop:
    """`signal` is the number of the signal that came, or 0."""

    signal: int = 0


@contextlib.contextmanager
def catch() -> Iterator[Stop]:
    """Notes the first signal instead of ending the process; the second one ends it as ever.

    Outside the main thread, where Python cannot catch signals, nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _) -> None:
        stop.signal = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
