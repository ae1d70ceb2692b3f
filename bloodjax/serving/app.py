"""The page and the HTTP endpoint. The only module that imports fastapi and starlette."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.resources
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fastapi
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from bloodjax.serving.limits import Refused
from bloodjax.serving.service import THREADS, VERSION, Nearest, Result, Service
from bloodjax.serving.uploads import FIELD, Reader, Upload

T = TypeVar("T")

# What the page consists of. No path of a request is ever looked up in the file system.
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "docs": ("docs.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
# The browser loads nothing from elsewhere, and no other site shows the page in a frame.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            }
        },
    }
}
_PNG = {200: {"content": {"image/png": {}}, "description": "A PNG file"}}
_REFUSALS = {
    400: {"description": "The request is damaged or has no files"},
    413: {"description": "The request is too large or has too many files"},
    415: {"description": "The request is not multipart/form-data"},
    503: {"description": "No answer within the time limit"},
}
_UNREADABLE = {422: {"description": "The file cannot be read, or an argument is invalid"}}

_log = logging.getLogger("bloodjax")

Scope = dict[str, Any]
Asgi = Callable[[Scope, Callable, Callable], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The answers to a request.

    Attributes:
      results: One answer for each file, in the order of the files.
    """

    results: list[Result]


class Guard:
    """Refuses requests of other sites, and adds headers of security to every response.

    A site in the user's browser may have its own name resolve to this machine (DNS rebinding), so
    the header Host must be an address or a name of this machine. It may also send a form here
    without being able to read the answer, so the header Origin must be this server's own.
    """

    def __init__(self, app: Asgi, names: Sequence[str]):
        """Wraps an application.

        Args:
          app: The application.
          names: Further names of this machine.
        """
        self._app = app
        here = socket.gethostname()
        self._given = {name.lower().rstrip(".") for name in names}
        own = ("localhost", here, f"{here.partition('.')[0]}.local")
        self._names = self._given | {name.lower().rstrip(".") for name in own}

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reason = self._why_refused(headers.get(b"host", ""), headers.get(b"origin"))
        app = self._app if reason is None else _refusal(403, reason)
        await app(scope, receive, send_with_headers)

    def _why_refused(self, host: str, origin: str | None) -> str | None:
        if not self._is_known(host):
            return "unknown Host, expected an address of this server; --allowed_host adds names"
        if origin is None or _netloc(origin) == host.lower():
            return None
        # A reverse proxy may put its own address in Host. The page's address is then a given name.
        if _name(_netloc(origin)) in self._given:
            return None
        return (
            "a request of another site, expected one of this server's own page; --allowed_host "
            "adds the name of a proxy"
        )

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        if name in self._names:
            return True
        try:  # an address is no name that another site could have resolve to this machine
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    """The name or address in a header Host, without the port; "" if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    """The host and port of an origin; "" if it is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def create(service: Service, allowed_hosts: Sequence[str] = ()) -> Asgi:
    """The application that answers requests about images by `service`.

    Args:
      service: Computes the answers, in threads of the application.
      allowed_hosts: Names of this machine besides its host name, which requests may address.
    """
    app = fastapi.FastAPI(
        title="bloodjax",
        version=VERSION,
        description="Classifies images of cells with a trained classifier.",
        docs_url=None,  # FastAPI's own pages load their scripts from another server
        redoc_url=None,
    )
    _add_page(app)
    _add_endpoint(app, service, _Worker(service))
    app.add_exception_handler(Refused, lambda _, error: _refusal(error.status, str(error)))
    app.add_exception_handler(Exception, _log_error)
    return Guard(app, allowed_hosts)


class _Worker:
    """Reads requests and has their answers computed in threads, within the limits."""

    def __init__(self, service: Service):
        self._service = service
        # As many requests as there are threads are held in memory at once; others wait before
        # their images are read.
        self._slots = asyncio.Semaphore(THREADS)

    async def answer(
        self, request: fastapi.Request, compute: Callable[[list[Upload]], T]
    ) -> T | Response:
        """The result of `compute` for the request's files, or the response that refuses it."""
        seconds = self._service.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(request, compute)
        except TimeoutError:
            return _refusal(503, f"no answer within {seconds:g} s; send fewer files, or try again")
        except ClientDisconnect:
            return Response(status_code=499)

    async def _answer(self, request: fastapi.Request, compute: Callable[[list[Upload]], T]) -> T:
        await self._slots.acquire()
        try:
            reader = Reader(request.headers.get("content-type", ""), self._service.limits)
            async for piece in request.stream():
                reader.feed(piece)
            future = self._service.pool.submit(compute, reader.finish())
        except BaseException:
            self._slots.release()
            raise
        # A computation goes on after the time limit, and takes its slot for as long.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._slots.release))
        return await asyncio.wrap_future(future)


def _add_page(app: fastapi.FastAPI) -> None:
    folder = importlib.resources.files("bloodjax.serving") / "page"
    contents = {path: (folder / name).read_bytes() for path, (name, _) in _FILES.items()}

    def add(path: str) -> None:
        @app.get(f"/{path}", include_in_schema=False)
        async def page_file() -> Response:
            return Response(contents[path], media_type=_FILES[path][1])

    for path in _FILES:
        add(path)


def _add_endpoint(app: fastapi.FastAPI, service: Service, worker: _Worker) -> None:
    @app.get("/api/model", summary="The classifier")
    async def model() -> dict[str, Any]:
        """Classes, network, figures on the run's test cells, calibration, limits and version."""
        return service.about()

    @app.post(
        "/api/predict",
        summary="Classify images",
        openapi_extra=_UPLOAD,
        responses=_REFUSALS,
        response_model=Predictions,
    )
    async def predict(request: fastapi.Request) -> Any:
        """The class of each file, its probability, and whether a person should look at it.

        A file that cannot be read gets an answer with an error, and the others are answered.
        """
        found = await worker.answer(request, service.predict)
        return found if isinstance(found, Response) else Predictions(found)

    @app.post(
        "/api/explain",
        summary="Heat map of an image",
        openapi_extra=_UPLOAD,
        responses=_PNG | _REFUSALS | _UNREADABLE,
        response_class=Response,
    )
    async def explain(request: fastapi.Request, class_name: str | None = None) -> Response:
        """The image with what speaks for a class, by default the predicted one."""
        found = await worker.answer(request, lambda u: service.explain(_only(u), class_name))
        return _png(found)

    @app.post(
        "/api/nearest",
        summary="The training cells most like an image",
        openapi_extra=_UPLOAD,
        responses=_REFUSALS | _UNREADABLE,
        response_model=Nearest,
    )
    async def nearest(request: fastapi.Request) -> Any:
        """The training cells whose features are most like those of the image."""
        return await worker.answer(request, lambda uploads: service.nearest(_only(uploads)))

    @app.post(
        "/api/preview",
        summary="An image as a small PNG file",
        openapi_extra=_UPLOAD,
        responses=_PNG | _REFUSALS | _UNREADABLE,
        response_class=Response,
    )
    async def preview(request: fastapi.Request) -> Response:
        """The image as the classifier reads it, for formats that browsers do not show."""
        return _png(await worker.answer(request, lambda u: service.preview(_only(u))))


def _only(uploads: list[Upload]) -> Upload:
    if len(uploads) != 1:
        raise Refused(400, f"{len(uploads)} files, expected one")
    return uploads[0]


def _png(found: bytes | Response) -> Response:
    return found if isinstance(found, Response) else Response(found, media_type="image/png")


def _refusal(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)


def _log_error(_: fastapi.Request, error: Exception) -> JSONResponse:
    """A bug: the traceback goes to the terminal, and no part of it to the client."""
    _log.error("answering a request", exc_info=error)
    return _refusal(500, "an error of the server, which its terminal shows")
