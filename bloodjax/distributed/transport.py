"""TCP connections between process 0 and the other processes of a run; messages are lines of JSON.

JAX's public API has no channel of this kind: only collectives carry values, and a process that
fails cannot reach peers that wait in another collective. The coroutines run in the event loop of
`heartbeat.Peers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

# Seconds for all processes to connect, after JAX has already connected them.
_CONNECT_TIMEOUT = 60.0
# Seconds in which a process that connects to process 0 must identify itself.
_HELLO_TIMEOUT = 5.0
# Bytes of the longest message.
_MAX_LINE = 1 << 24


def listen() -> tuple[socket.socket, dict[str, Any]]:
    """Opens process 0's listener.

    Returns:
      The listener, and the address that the other processes need: hosts, port and a token.
    """
    listener = socket.create_server(("", 0), backlog=1024)
    hosts = [socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        # Sends nothing. It selects the network interface, whose address the others can reach.
        probe.connect(("192.0.2.1", 9))
        hosts.append(probe.getsockname()[0])
    port = listener.getsockname()[1]
    return listener, {"hosts": hosts, "port": port, "token": secrets.token_hex(8)}


class Connection:
    """A connection to another process.

    Attributes:
      process: The other process's id.
      silent: Seconds without a message while this process was listening.
      left: Whether the other process announced a clean exit.
      closed: Whether the connection is closed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: int):
        self.process = process
        self.silent, self.left, self.closed = 0.0, False, False
        self._reader, self._writer = reader, writer

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message without waiting. If the peer is gone, `messages` ends."""
        if not self.closed:
            self._writer.write(_line(message))

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the peer's messages until the connection closes; resets `silent` at each."""
        with contextlib.suppress(OSError):
            while (line := await self._reader.readline()).endswith(b"\n"):
                self.silent = 0.0
                yield json.loads(line)
        self.closed = True

    def close(self) -> None:
        """Closes the connection after what was sent has left this process."""
        self._writer.close()


async def connect(process: int, address: Mapping[str, Any], attempts: int = 60) -> list[Connection]:
    """Connects to process 0.

    Args:
      process: This process's id.
      address: The address that `listen` returned on process 0.
      attempts: How often each of process 0's hosts is tried; there is one second between attempts.

    Returns:
      The one connection.

    Raises:
      OSError: Process 0 cannot be reached or rejects the token.
    """
    hello = {"token": address["token"], "process": process}
    for attempt in range(attempts):
        await asyncio.sleep(1.0 if attempt else 0.0)
        for other in address["hosts"]:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(
                        other, address["port"], limit=_MAX_LINE
                    )
                    writer.write(_line(hello))
                    welcome = await reader.readline()
                if not welcome:
                    raise ConnectionError(f"{other} closed the connection")
                return [Connection(reader, writer, 0)]
            except OSError as failed:
                error = failed
    raise error


async def accept(listener: socket.socket, count: int, token: str) -> list[Connection]:
    """Accepts one connection from each of the other processes, on process 0.

    Callers without the token are disconnected.

    Args:
      listener: What `listen` returned. It is closed at the end.
      count: Number of processes of the run.
      token: The token in the address that `listen` returned.

    Returns:
      The connections, in order of process id.

    Raises:
      OSError: Not all processes connected in time.
    """
    connections: dict[int, Connection] = {}
    complete = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT):
                hello = json.loads(await reader.readline())
            if not secrets.compare_digest(str(hello["token"]), token):
                raise ValueError("wrong token")
            process = int(hello["process"])
            connections[process] = Connection(reader, writer, process)
            connections[process].send({})
        except (OSError, ValueError, KeyError, TypeError):
            writer.close()
        if len(connections) == count - 1:
            complete.set()

    server = await asyncio.start_server(greet, sock=listener, limit=_MAX_LINE)
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            await complete.wait()
    except TimeoutError:
        missing = sorted(set(range(1, count)) - set(connections))
        raise OSError(f"processes {missing} did not connect") from None
    finally:
        server.close()
    return [connections[process] for process in sorted(connections)]


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
