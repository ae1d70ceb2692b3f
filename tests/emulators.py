"""Servers on this machine that behave like S3 and GCS, and a proxy that makes one slow.

`moto` emulates S3 and `gcp-storage-emulator` emulates GCS (extra [emulators]). The latter ignores
preconditions, which `_Preconditions` adds: a write with `ifGenerationMatch` fails with status 412
if the object has another generation, as GCS documents it. It also reads an upload in parts as
e-mail, which loses a last byte "\\r"; `_read_parts` reads it as bytes.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import socket
import threading
import time
import urllib.parse
import urllib.request
import uuid
from unittest import mock

import pytest


@dataclasses.dataclass(frozen=True)
class Bucket:
    """An empty bucket of an emulator.

    Attributes:
      scheme: "s3" or "gs".
      name: Name of the bucket.
      endpoint: Address of the server.
    """

    scheme: str
    name: str
    endpoint: str

    def __truediv__(self, name):
        """The URL of an object."""
        return f"{self.scheme}://{self.name}/{name}"

    @property
    def url(self):
        return f"{self.scheme}://{self.name}"


def environment(cache, s3="http://127.0.0.1:9", gcs="http://127.0.0.1:9"):
    """Variables with which a process reads buckets of the emulators, and no others."""
    return {
        "BLOODJAX_CACHE": str(cache),
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "STORAGE_EMULATOR_HOST": gcs,
        "NO_GCE_CHECK": "true",
        "GOOGLE_APPLICATION_CREDENTIALS": "",
    }


def _need(*packages):
    """Skips the test if a package is missing; imports none."""
    if not all(map(importlib.util.find_spec, packages)):
        pytest.skip("needs the extras [emulators] and [remote]")


@contextlib.contextmanager
def s3_server():
    """Address of an emulator of S3."""
    _need("moto", "flask", "s3fs")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextlib.contextmanager
def gcs_server():
    """Address of an emulator of GCS."""
    _need("gcp_storage_emulator", "gcsfs")
    from http import server as http_server

    from gcp_storage_emulator import server as gcs
    from gcp_storage_emulator.storage import Storage

    for library in ("gcp_storage_emulator", "api.object", "api.bucket"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)

    class Handler(_Preconditions, gcs.RequestHandler):
        def __init__(self, *args):
            super().__init__(storage, *args)

    server = http_server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    reads = functools.partial(_read_parts, gcs._read_data)
    try:
        with mock.patch.object(gcs, "_read_data", reads):
            yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _read_parts(otherwise, handler, query):
    """The description and the content of an upload in two parts; other bodies as before."""
    kind = handler.headers.get("Content-Type", "")
    if not kind.startswith("multipart/related"):
        return otherwise(handler, query)
    body = handler.rfile.read(int(handler.headers["Content-Length"]))
    mark = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    end = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"  # gcsfs ends lines with the latter
    _, description, part = body.split(mark, 2)
    headers, _, content = part[: part.rindex(end + mark)].partition(2 * end)
    return {
        "meta": json.loads(description.partition(2 * end)[2]),
        "content": content,
        "content-type": headers.partition(b":")[2].strip().decode(),
    }


class _Preconditions:
    """One request at a time, and `ifGenerationMatch` of writes in one request."""

    _one_at_a_time = threading.Lock()

    def _handle(self, method):
        with self._one_at_a_time:
            status = self._refused() if method == "do_POST" else None
            if status is None:
                getattr(super(), method)()
                return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status, "Precondition Failed")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refused(self):
        address = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(address.query)
        wanted = query.get("ifGenerationMatch")
        if wanted is None:
            return None
        bucket = urllib.parse.unquote(address.path.split("/b/")[1].split("/")[0])
        objects = self.storage.objects.get(bucket, {})
        now = objects.get(query["name"][0], {}).get("generation", "0")
        return None if wanted == [now] else 412

    def do_GET(self):
        self._handle("do_GET")

    def do_POST(self):
        self._handle("do_POST")

    def do_PUT(self):
        self._handle("do_PUT")

    def do_DELETE(self):
        self._handle("do_DELETE")


def make_bucket(scheme, endpoint):
    """A new bucket with a name of its own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    if scheme == "s3":
        request = urllib.request.Request(f"{endpoint}/{name}", b"", method="PUT")
        request.add_header("Host", "s3.amazonaws.com")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/x/us-east-1/s3/x")
    else:
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(f"{endpoint}/storage/v1/b?project=test", body)
        request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).close()
    return Bucket(scheme, name, endpoint)


@contextlib.contextmanager
def refusing(status):
    """Address of a server that answers every request with a status, such as 403."""
    from http import server as http_server

    class Handler(http_server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status, "Refused")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *args):
            pass

    server = http_server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        server.server_close()


class Proxy:
    """Passes connections on to a server; slowly, or not to their end.

    Attributes:
      address: Where it listens, such as http://127.0.0.1:5000.
      delay: Seconds before the first byte of each answer.
      drops: Number of answers that are cut, from now on; counts down.
      cut: Bytes of an answer after which it is cut.
      connections: Number of connections so far.
    """

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay, self.drops, self.cut, self.connections = 0.0, 0, 0, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._server)
            for target, source, answers in ((server, client, False), (client, server, True)):
                threading.Thread(
                    target=self._pass, args=(source, target, answers), daemon=True
                ).start()

    def _pass(self, source, target, answers):
        left = None
        try:
            while data := source.recv(2**16):
                if answers and left is None:
                    time.sleep(self.delay)
                    left = float("inf")
                    if self.drops > 0:
                        self.drops -= 1
                        left = self.cut
                if answers:
                    data, left = data[: int(min(left, len(data)))], left - len(data)
                target.sendall(data)
                if answers and left <= 0:
                    break
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
