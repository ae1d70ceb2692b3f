"""Detects dead and hung processes, ends the run for all of them, and exchanges values.

Process 0 listens on a TCP port, and every other process keeps a connection to it. A background
thread in each process sends a heartbeat once per second. A process is lost in these cases:

- Its connection closes without a farewell: it was killed, or its machine is gone.
- It sends nothing for `silence` seconds: it was stopped, its machine hangs, or something holds the
  GIL.
- Its main thread exceeds a deadline set with `with_deadline`. The process reports this itself.

Then every process prints one line that names the lost process and its host, and exits with
`PEER_LOST`, after which a launcher starts the run again. Work that takes long has no limit, since
heartbeats continue while a process reads, compiles or validates.

JAX detects the first two cases as well, but aborts with SIGABRT and without the host's name. It
does not detect the third. docs/distributed.md has the measurements. JAX's own heartbeat stays on
as a second line of defence, with a longer timeout.

`exchange` uses the same connections. Unlike a JAX collective it does not wait for the devices, and
waits for a late process without a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from bloodjax.distributed.transport import Connection, accept, connect

# Exit status after the loss of another process: EX_TEMPFAIL of sysexits.h, "try again".
PEER_LOST = 75
# Exit status after a mistake of the user's.
USER_ERROR = 2

_HEARTBEAT_SECONDS = 1.0
# After another process's error, the time in which the main thread may end in good order.
_GRACE_SECONDS = 15.0
# The time in which the last message reaches process 0, before the connection closes.
_SEND_SECONDS = 0.5
# How long a clean exit waits for the background thread.
_CLOSE_SECONDS = 2.0
# How often a process with a pending exit checks whether it may end.
_POLL_SECONDS = 0.1


class Peers:
    """One process's connections to the other processes.

    All state except the deadline belongs to the event loop of a background thread.

    Attributes:
      process: This process's id.
      count: Number of processes of the run.
    """

    def __init__(
        self,
        process: int,
        hosts: Sequence[str],
        address: Mapping[str, Any],
        listener: socket.socket | None = None,
        *,
        silence: float = 20.0,
    ):
        """Connects to the other processes and starts to watch them.

        Args:
          process: This process's id.
          hosts: The host name of each process, for messages.
          address: The address that `transport.listen` returned on process 0.
          listener: On process 0, the listener that `transport.listen` returned.
          silence: Seconds without a heartbeat after which a process is lost.

        Raises:
          OSError: The other processes cannot be reached.
        """
        self.process, self.count = process, len(hosts)
        self._hosts, self._silence = hosts, silence
        self._deadline: tuple[float, str] | None = None
        self._pending_exit: tuple[float, int, str] | None = None
        self._failed = False
        self._values: dict[int, Any] = {}
        connecting = (
            connect(process, address)
            if listener is None
            else accept(listener, len(hosts), address["token"])
        )
        connected: Future = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(connecting, connected),), daemon=True
        )
        self._thread.start()
        connected.result()

    def exchange(self, value: Any) -> list[Any]:
        """Returns every process's `value`, in order of process id.

        It waits until all processes have given theirs. All must call it in the same order.

        Args:
          value: Anything that JSON can represent.
        """
        return asyncio.run_coroutine_threadsafe(self._exchange(value), self._loop).result()

    @contextlib.contextmanager
    def with_deadline(self, seconds: float, activity: str) -> Iterator[None]:
        """Ends the run if the main thread does not leave the body within `seconds`."""
        self._deadline = (time.monotonic() + seconds, f"has been {activity} for {seconds:g} s")
        try:
            yield
        finally:
            self._deadline = None

    def fail(self, status: int, reason: str) -> None:
        """Tells the other processes that this one failed; they exit soon after.

        This process exits too if its main thread does not: that may wait for a peer.

        Args:
          status: The other processes' exit status.
          reason: The line after "process 1 (host) ".
        """
        failing = self._fail(status, f"{self._name(self.process)} {reason}")
        asyncio.run_coroutine_threadsafe(failing, self._loop).result()

    def drain(self) -> None:
        """After `fail`: waits until the message has arrived.

        Process 0 waits until the other processes have ended. If it ended first, JAX would abort
        them before their files are closed.
        """
        end = time.monotonic() + (_GRACE_SECONDS if self.process == 0 else _SEND_SECONDS)
        while time.monotonic() < end and not self._all_closed():
            time.sleep(0.05)

    def close(self) -> None:
        """Announces a clean exit, so that peers do not take the closed connection for a failure."""
        self._loop.call_soon_threadsafe(self._close)
        self._thread.join(_CLOSE_SECONDS)

    async def _serve(self, connecting: Awaitable[list[Connection]], connected: Future) -> None:
        """Connects, then runs the background tasks until `close`."""
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        try:
            self._connections = await connecting
        except Exception as error:
            connected.set_exception(error)
            return
        coroutines = self._watch(), *map(self._receive, self._connections)
        tasks = [asyncio.create_task(self._guard(coroutine)) for coroutine in coroutines]
        connected.set_result(None)
        await self._closed.wait()
        for task in tasks:
            task.cancel()

    async def _exchange(self, value: Any) -> list[Any]:
        self._result = self._loop.create_future()
        self._give(self.process, value)
        return await self._result

    def _give(self, process: int, value: Any) -> None:
        """Gives a value to process 0, which sends all values to everyone once they are complete.

        A process gives its next value only after it has received all of the present ones, so there
        is never more than one exchange to collect.
        """
        if self.process != 0:
            self._connections[0].send({"value": value})
            return
        self._values[process] = value
        if len(self._values) == self.count:
            values = [self._values.pop(i) for i in range(self.count)]
            self._broadcast({"values": values})
            self._result.set_result(values)

    async def _fail(self, status: int, line: str) -> None:
        # The main thread ends the process with its own status. On process 0 `drain` is before that.
        self._failed = True
        self._end_all(status, line, _GRACE_SECONDS * (2 if self.process == 0 else 1))

    def _close(self) -> None:
        self._broadcast({"farewell": True})
        for connection in self._connections:
            connection.close()
        self._closed.set()

    def _broadcast(self, message: Mapping[str, Any], source: Connection | None = None) -> None:
        for connection in self._connections:
            if connection is not source:
                connection.send(message)

    async def _receive(self, connection: Connection) -> None:
        async for message in connection.messages():
            if "value" in message:
                self._give(connection.process, message["value"])
            elif "values" in message:
                self._result.set_result(message["values"])
            elif "exit" in message:
                # After a user error all processes may meet the same one: each then reports it
                # itself and closes its files.
                orderly = message["exit"] == USER_ERROR
                wait = _GRACE_SECONDS if orderly or self.process == 0 else 0.0
                self._end_all(message["exit"], message["line"], wait, connection)
                self._check()
            elif "farewell" in message:
                connection.left = True
        self._check()

    def _end_all(
        self, status: int, line: str, wait: float, source: Connection | None = None
    ) -> None:
        """Tells the other processes to exit, and has this one exit after `wait` seconds."""
        if self._pending_exit is None:
            self._broadcast({"exit": status, "line": line}, source)
            self._pending_exit = (time.monotonic() + wait, status, line)

    async def _watch(self) -> None:
        while True:
            started = time.monotonic()
            pending = self._pending_exit is not None
            await asyncio.sleep(_POLL_SECONDS if pending else _HEARTBEAT_SECONDS)
            elapsed = time.monotonic() - started
            for connection in self._connections:
                # A process that was itself stopped did not listen all that time.
                connection.silent += min(elapsed, self._silence / 3)
                connection.send({})
            self._check()

    async def _guard(self, coroutine: Coroutine) -> None:
        """Runs one of the background tasks. If it fails, the process could wait for ever."""
        try:
            await coroutine
        except Exception:
            traceback.print_exc()
            _exit(PEER_LOST, f"{self._name(self.process)} cannot monitor the other processes")

    def _check(self) -> None:
        """Ends the run if a process is lost, and this process if its exit is due."""
        if self._pending_exit is None:
            self._find_lost()
        if self._pending_exit is not None:
            due, status, line = self._pending_exit
            # Process 0 ends last; `drain` has the reason.
            last = self.process == 0 and not self._failed and self._all_closed()
            if last or time.monotonic() >= due:
                _exit(status, line)

    def _find_lost(self) -> None:
        wait = _GRACE_SECONDS if self.process == 0 else 0.0
        for connection in self._connections:
            who = self._name(connection.process)
            if connection.closed and not connection.left:
                self._end_all(PEER_LOST, f"{who} ended unexpectedly", wait)
            elif connection.silent > self._silence and not connection.left:
                connection.closed = True  # process 0 does not wait for it
                self._end_all(PEER_LOST, f"{who} sent no heartbeat for {self._silence:g} s", wait)
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline[0]:
            faulthandler.dump_traceback()
            self._end_all(PEER_LOST, f"{self._name(self.process)} {deadline[1]}", wait)

    def _name(self, process: int) -> str:
        return f"process {process} ({self._hosts[process]})"

    def _all_closed(self) -> bool:
        return all(connection.closed for connection in self._connections)


def _exit(status: int, reason: str) -> None:
    """Ends the process immediately: its main thread may be waiting for a peer for ever."""
    text = f"error: {reason}" if status == USER_ERROR else f"{reason}; this process exits too"
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(2, (text + "\n").encode())
    os._exit(status)
