"""TCP connections among the processes of a run: made, and spoken over in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

BEAT = 1.0
# For all processes to connect, once JAX has connected them already.
_CONNECT = 60.0


def listen() -> tuple[socket.socket, dict[str, Any]]:
    """Process 0's door, and what the others need to find it: hosts, port, and a token."""
    door = socket.create_server(("", 0), backlog=1024)
    name = socket.gethostname()
    hosts = [name]
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))  # nothing is sent: it finds the address of the way out
        hosts.append(outward.getsockname()[0])
    return door, {"hosts": hosts, "port": door.getsockname()[1], "token": secrets.token_hex(8)}


class Connection:
    """A connection with another process, in lines of JSON.

    Attributes:
      silent: seconds in which it was listened to, and gave no sign.
      left: whether it said farewell.
      closed: whether the connection is.
    """

    def __init__(self, connection: socket.socket, process: int, host: str, rest: bytes = b""):
        self.socket, self.process, self.host = connection, process, host
        self.silent, self.left, self.closed = 0.0, False, False
        self._rest, self._sent = rest, 0.0
        connection.settimeout(5.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends it, if the other one is there; that it is not shows in reading."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def beat(self, now: float) -> None:
        """Sends a sign of life, a second after the last."""
        if now - self._sent >= BEAT and not self.closed:
            self._sent = now
            self.send({})

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come, or None where the connection is closed."""
        try:
            content = self.socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            content = b""
        if not content:
            self.closed = True
            return None
        self.silent = 0.0
        *whole, self._rest = (self._rest + content).split(b"\n")
        return [json.loads(text) for text in whole if text]


def join(process: int, address: Mapping[str, Any], host: str, attempts: int = 60) -> Connection:
    """A connection with process 0.

    Args:
      process: this one's number.
      address: what `listen` returned on process 0.
      host: this one's name, for the others' messages.
      attempts: how often, a second apart, each of process 0's hosts is tried.

    Raises:
      OSError: it cannot be reached, or does not know us.
    """
    hello = {"token": address["token"], "process": process, "host": host}
    for attempt in range(attempts):
        time.sleep(BEAT if attempt else 0.0)
        for other in address["hosts"]:
            try:
                connection = socket.create_connection((other, address["port"]), timeout=_CONNECT)
                connection.sendall(json.dumps(hello).encode() + b"\n")
                welcome, rest = _first_line(connection)
                return Connection(connection, 0, welcome["host"], rest)
            except OSError as failed:
                error = failed
    raise error


def receive_all(door: socket.socket, count: int, token: str, host: str) -> list[Connection]:
    """A connection with each of the others, by their numbers.

    Callers without the token are sent away.

    Raises:
      OSError: not all of them came.
    """
    lines: dict[int, Connection] = {}
    end = time.monotonic() + _CONNECT
    with door:
        while len(lines) < count - 1:
            door.settimeout(max(0.1, end - time.monotonic()))
            try:
                connection, _ = door.accept()
            except TimeoutError:
                missing = sorted(set(range(1, count)) - set(lines))
                raise OSError(f"processes {missing} did not connect") from None
            connection.settimeout(BEAT)
            try:
                hello, rest = _first_line(connection)
                known = secrets.compare_digest(str(hello["token"]), token)
                if not known:
                    raise ValueError("another token")
                connection.sendall(json.dumps({"host": host}).encode() + b"\n")
                process = int(hello["process"])
                lines[process] = Connection(connection, process, str(hello["host"]), rest)
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()
    return [lines[process] for process in sorted(lines)]


def _first_line(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    content = b""
    while b"\n" not in content:
        more = connection.recv(4096)
        if not more:
            raise OSError("closed")
        content += more
    line, _, rest = content.partition(b"\n")
    return json.loads(line), rest
