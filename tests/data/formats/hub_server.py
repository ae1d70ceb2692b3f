"""A server that answers as the Hugging Face Hub does about one dataset of Parquet files."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


@dataclasses.dataclass(frozen=True)
class Hub:
    """The server.

    Attributes:
      address: Its URL.
      requests: Path of each request so far.
    """

    address: str
    requests: list[str]


@contextlib.contextmanager
def serve(repository: str, folder: pathlib.Path, commit: str):
    """A `Hub` with the Parquet files of a folder in `data/` of the repository."""
    files = {f"data/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append(self.path)
            try:
                paths = json.loads(body)["paths"]
            except ValueError:
                paths = urllib.parse.parse_qs(body.decode())["paths"]
            found = [_file(path, files[path]) for path in paths if path in files]
            self._json(found + [_folder(path) for path in paths if path.strip("/") == "data"])

        def do_GET(self):
            requests.append(self.path)
            path, _, query = self.path.partition("?")
            path = urllib.parse.unquote(path)
            if path.startswith(f"/api/datasets/{repository}/tree/"):
                self._tree(path, "recursive=true" in query.lower())
            elif path.startswith(f"/api/datasets/{repository}"):
                self._json({"id": repository, "sha": commit, "siblings": [], "tags": []})
            elif path.startswith(f"/datasets/{repository}/resolve/"):
                self._content(path.split("/resolve/")[1].partition("/")[2])
            else:
                self._answer(404, X_Error_Code="RepoNotFound")

        def _tree(self, path, recursive):
            place = path.split("/tree/")[1].partition("/")[2].strip("/")
            listed = [_file(name, content) for name, content in files.items()]
            if not place:
                self._json([_folder("data"), *(listed if recursive else [])])
            elif place == "data":
                self._json(listed)
            else:
                self._answer(404, X_Error_Code="EntryNotFound")

        def _content(self, name):
            if name not in files:
                self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            tag = hashlib.sha1(files[name]).hexdigest()
            self._answer(200, files[name], ETag=f'"{tag}"', X_Repo_Commit=commit)

        def _json(self, content):
            self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def _answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file(path: str, content: bytes) -> dict:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def _folder(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
