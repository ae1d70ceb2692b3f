import socket

import pytest

from bloodjax.errors import UserError

server = pytest.importorskip("bloodjax.serving.server", reason="needs the extra [serve]")


def test_an_address():
    with server.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert server.url(bound) == f"http://127.0.0.1:{port}/"
        assert server.is_loopback(bound)
    with server.bind("0.0.0.0", 0) as bound:
        assert server.url(bound).startswith("http://127.0.0.1:")
        assert not server.is_loopback(bound)


def test_a_port_that_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: another process uses it"):
            server.bind("127.0.0.1", port)
    server.bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine(host):
    with pytest.raises(UserError, match=f"--host={host}: .*expected an address of this machine"):
        server.bind(host, 0)
