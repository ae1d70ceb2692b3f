"""Serves an application over HTTP. The only module that imports uvicorn."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent import futures

import uvicorn

from bloodjax.errors import UserError

# Connections of more clients are answered with status 503.
_CONNECTIONS = 100
# Seconds for which requests that are being answered may go on after a signal.
_GRACE_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and does not listen yet.

    Args:
      host: Address or name of this machine.
      port: Port; 0 is a free one.

    Raises:
      UserError: The port is in use or not allowed, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host={host}: unknown, expected an address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    if os.name == "posix":  # a port whose last connections are closing is free
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(1)  # of two servers of one port, the second fails here
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            message = f"--port={port}: another process uses it, expected a free port"
        elif error.errno == errno.EACCES:
            message = f"--port={port}: {error.strerror}, expected a port above 1023"
        else:
            message = f"--host={host}: {error.strerror}, expected an address of this machine"
        raise UserError(message) from None
    return bound


def url(bound: socket.socket) -> str:
    """The address of a bound socket, for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}/" if ":" in local else f"http://{local}:{port}/"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


class Server(uvicorn.Server):
    """Serves an application in a thread, because uvicorn handles signals in the main thread."""

    def __init__(self, app: Callable[..., Awaitable[None]], on_start: Callable[[], None]):
        """Sets up a server; `start` starts it.

        Args:
          app: An ASGI application.
          on_start: Called when the server answers.
        """
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._on_start = on_start
        self._pool = futures.ThreadPoolExecutor(1, "server")
        self._running: futures.Future | None = None

    def start(self, bound: socket.socket) -> None:
        """Starts to serve at what `bind` returned."""
        self._running = self._pool.submit(self.run, [bound])

    def wait(self) -> None:
        """Waits until the server ends, and raises what ended it."""
        self._running.result()

    def stop(self) -> None:
        """Ends the server; requests that are being answered have a few seconds."""
        self.should_exit = True
        self._pool.shutdown()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Calls `on_start` once the server answers."""
        await super().startup(sockets)
        self._on_start()
