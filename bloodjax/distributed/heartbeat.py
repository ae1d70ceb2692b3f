"""How the processes of a run keep in touch: who lives, what they agree on, why the run ends.

Process 0 listens on a TCP port, and every other one holds a connection to it. A thread in each
sends a beat a second. A process is lost when its connection closes without a farewell (it was
killed, or its machine left) or when it has been silent for `silence` seconds (its machine hangs, it
was stopped, or something holds Python's lock); and it says itself that it hangs when its main
thread is not through what `within` allows a time for. Then every process ends with one line that
names it, and `LOST`, a status that asks a launcher to start the run again.

What takes long has no limit: a process that reads, compiles or validates for an hour beats.
JAX's own watch over its processes aborts with a core dump, names no host, and takes no notice of a
process whose Python hangs; it stays, with a longer timeout, as the second line.

The same connections carry `exchange`, by which all processes learn a value of each. Unlike a
collective of JAX's it waits for no device, and has no time limit of a device's.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from bloodjax.distributed.transport import BEAT, Connection, join, receive_all

# Of a process that ends because another one is lost: EX_TEMPFAIL of sysexits.h, "try again".
LOST = 75
# Of a process that ends because of a mistake of the user's.
MISTAKE = 2

# After another process's error, for one's own main thread to come to an end in good order.
_GRACE = 15.0
# For what was sent last to reach process 0 before the connection closes.
_SENT = 0.5
# How often a process that is to end looks whether it may.
_LOOK = 0.1


class Peers:
    """What one process knows of the others.

    Attributes:
      process: this one's number.
      count: of all processes.
    """

    def __init__(
        self,
        process: int,
        count: int,
        address: Mapping[str, Any],
        door: socket.socket | None = None,
        *,
        silence: float = 20.0,
    ):
        """Connects with the others, and watches from then on.

        Args:
          process: this one's number.
          count: of all processes.
          address: what `listen` returned on process 0.
          door: on process 0, what it returned besides.
          silence: seconds without a beat after which a process is lost.

        Raises:
          OSError: the others cannot be reached.
        """
        self.process, self.count, self._silence = process, count, silence
        self._host = socket.gethostname()
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._values: dict[int, dict[int, Any]] = {}
        self._results: dict[int, list[Any]] = {}
        self._exchanges = 0
        self._limit: tuple[float, str] | None = None
        self._doom: tuple[float, int, str] | None = None
        self._over = False
        self._lines = (
            [join(process, address, self._host)]
            if door is None
            else receive_all(door, count, address["token"], self._host)
        )
        self._selector = selectors.DefaultSelector()
        for line in self._lines:
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def exchange(self, value: Any) -> list[Any]:
        """Every process's `value`, in order of their numbers; waits until all have given theirs.

        All processes must call it in the same order.

        Args:
          value: whatever JSON can hold.
        """
        with self._lock:
            number, self._exchanges = self._exchanges, self._exchanges + 1
            if self.process == 0:
                self._take(number, 0, value)
            else:
                self._lines[0].send({"number": number, "value": value})
            while number not in self._results:
                self._news.wait(BEAT)
            return self._results.pop(number)

    @contextlib.contextmanager
    def within(self, seconds: float, doing: str) -> Iterator[None]:
        """Ends the run if the main thread is not out of the body after so many seconds."""
        self._limit = (time.monotonic() + seconds, f"has been {doing} for {seconds:g} s")
        try:
            yield
        finally:
            self._limit = None

    def fail(self, status: int, reason: str) -> None:
        """Tells the others that this process cannot go on, and why; they end soon after.

        So does this one, if its main thread does not get to its end: that may wait for a peer.

        Args:
          status: what the others end with.
          reason: goes on after "process 1 (host) ".
        """
        line = f"process {self.process} ({self._host}) {reason}"
        with self._lock:
            if self._doom is None and not self._over:
                self._tell({"end": status, "line": line})
                self._doom = (time.monotonic() + _GRACE, status, line)

    def linger(self) -> None:
        """After `fail`: lets what was sent arrive, and on process 0 the others end before it.

        Where process 0 ends first, JAX aborts the others in the midst of what they do.
        """
        end = time.monotonic() + (_GRACE if self.process == 0 else _SENT)
        while time.monotonic() < end and not all(line.closed for line in self._lines):
            time.sleep(0.05)

    def close(self) -> None:
        """Says farewell; nobody minds then that this process ends."""
        with self._lock:
            self._over = True
            self._tell({"farewell": True})
        self._thread.join(2 * BEAT)
        for line in self._lines:
            line.socket.close()

    def _watch(self) -> None:
        try:
            self._watch_on()
        except Exception:
            if not self._over:  # without it, a lost process would keep this one waiting for ever
                traceback.print_exc()
                _end(LOST, f"process {self.process} ({self._host}) cannot watch the others")

    def _watch_on(self) -> None:
        while not self._over:
            started = time.monotonic()
            for key, _ in self._selector.select(BEAT if self._doom is None else _LOOK):
                self._hear(key.data)
            now = time.monotonic()
            with self._lock:
                for line in self._lines:
                    # A process that was stopped itself has not listened all the while.
                    line.silent += min(now - started, self._silence / 3)
                    line.beat(now)
            self._judge(now)

    def _hear(self, line: Connection) -> None:
        messages = line.receive()
        if messages is None:
            self._selector.unregister(line.socket)
            return
        for message in messages:
            if "number" in message:
                with self._lock:
                    self._take(message["number"], line.process, message["value"])
            elif "all" in message:
                with self._lock:
                    self._results[message["all"]] = message["values"]
                    self._news.notify_all()
            elif "end" in message:
                self._pass_on(message, line)
            elif "farewell" in message:
                line.left = True

    def _tell(self, message: Mapping[str, Any], but: Connection | None = None) -> None:
        for line in self._lines:
            if line is not but:
                line.send(message)

    def _take(self, number: int, process: int, value: Any) -> None:
        """On process 0: notes a value; when all are there, everyone gets them."""
        given = self._values.setdefault(number, {})
        given[process] = value
        if len(given) == self.count:
            values = [given[i] for i in range(self.count)]
            del self._values[number]
            self._results[number] = values
            self._tell({"all": number, "values": values})
            self._news.notify_all()

    def _pass_on(self, message: Mapping[str, Any], source: Connection) -> None:
        """Another process cannot go on: the rest hear of it, and this one ends."""
        status = message["end"]
        # Where all processes meet the same mistake, each says so itself and closes its files.
        wait = _GRACE if status == MISTAKE or self.process == 0 else 0.0
        with self._lock:
            if self._doom is None:
                self._tell(message, but=source)
                self._doom = (time.monotonic() + wait, status, message["line"])

    def _judge(self, now: float) -> None:
        if self._over:
            return
        if self._doom is not None:
            # Process 0 is the last to end, for the sake of the others; see `linger`.
            alone = self.process == 0 and all(line.closed for line in self._lines)
            if alone or time.monotonic() >= self._doom[0]:
                _end(*self._doom[1:])
            return
        for line in self._lines:
            who = f"process {line.process} ({line.host})"
            if line.closed and not line.left:
                return self._lose(f"{who} ended without a word")
            if line.silent > self._silence and not line.left:
                line.closed = True  # nobody waits for it
                return self._lose(f"{who} has given no sign for {self._silence:g} s")
        limit = self._limit
        if limit is not None and now > limit[0]:
            faulthandler.dump_traceback()
            self._lose(f"process {self.process} ({self._host}) {limit[1]}")

    def _lose(self, reason: str) -> None:
        """Tells the others that one is lost, and that they end for it, as this one does next."""
        wait = _GRACE if self.process == 0 else 0.0
        with self._lock:
            self._tell({"end": LOST, "line": reason})
            self._doom = (time.monotonic() + wait, LOST, reason)
        self._judge(time.monotonic())


def _end(status: int, reason: str) -> None:
    """Ends the process here and now: its main thread may be waiting for a peer for ever."""
    text = f"error: {reason}" if status == MISTAKE else f"{reason}; this process ends too"
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(2, (text + "\n").encode())
    os._exit(status)
