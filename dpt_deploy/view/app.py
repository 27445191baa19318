"""The web application: static files, what the models are, maps for an image, and files to keep.

Nothing is written to a disk, and an image stays in memory only until the next one.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .downloads import MEDIA, Choices
from .guard import Guard, refusal
from .models import Models, Refused, Unwanted, Wanted

STATIC = Path(__file__).resolve().parent / "static"
TYPES = {suffix: f"text/{kind}; charset=utf-8" for suffix, kind in
         ((".html", "html"), (".css", "css"), (".js", "javascript"))}
MOST_WAITING = 6
"""Requests that may be read or wait for the models; more are asked to come again."""
UPLOAD_SECONDS = 120
FILM = (10.0, 400.0)
"""Focal lengths that the page offers [mm on 35 mm film]."""
Work = Callable[[bytes, Wanted], bytes]
"""Makes an answer of the body of a request."""
PLAIN = {404: "There is nothing at this address.", 405: "This address does not take such a request."}


class Page:
    """The application around the models."""

    def __init__(self, models: Models, max_bytes: int, names: frozenset[str] = frozenset()) -> None:
        self.models, self.max_bytes = models, max_bytes
        self.waiting = 0
        self.stopping = asyncio.Event()
        self.limiter = anyio.CapacityLimiter(2)  # one computes, one decodes or packs
        self.files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}
        routes = Starlette(
            routes=[
                Route("/", self.file), Route("/static/{name}", self.file), Route("/api/info", self.info),
                Route("/api/predict", self.predict, methods=["POST"]),
                Route("/api/download/{name}", self.download, methods=["POST"]),
            ],
            exception_handlers={Refused: _refused, HTTPException: _plain, ClientDisconnect: _gone, Unwanted: _gone,
                                Exception: _failed},
        )
        # Around all routes, so that the answers to their failures have its headers too. Those by which the HTTP server
        # refuses a malformed request (400) or a connection too many (503) have none: they are one line of plain text.
        self.app = Guard(routes, names)

    async def file(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "index.html")
        if name not in self.files:
            raise HTTPException(404)
        return Response(self.files[name], headers={"Content-Type": TYPES[Path(name).suffix]})

    async def info(self, _request: Request) -> Response:
        """What the models are, and the limits."""
        return JSONResponse(self.models.info() | {"max_bytes": self.max_bytes, "max_pixels": self.models.max_pixels})

    async def predict(self, request: Request) -> Response:
        """The maps of the image in the body; `answer` describes the bytes."""
        compare, live = (request.query_params.get(name) == "1" for name in ("compare", "live"))
        film = _film(request.query_params)
        body = await self._answer(request, lambda data, wanted: self.models.look(data, compare, live, film, wanted))
        return Response(body, media_type="application/octet-stream")

    async def download(self, request: Request) -> Response:
        """A file made of the image in the body."""
        name, query = request.path_params["name"], request.query_params
        choices = Choices(_number(query, "threshold", 0.5, 0, 1), query.get("soft", "1") == "1",
                          _film(query))
        number = int(_number(query, "model", 0, 0, 1))
        body = await self._answer(
            request, lambda data, wanted: self.models.download(data, name, choices, number, wanted))
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(body, media_type=MEDIA[name.rpartition(".")[2]], headers=disposition)

    def stop(self) -> None:
        """Refuse the requests that still wait, and all further ones. To be called in the event loop."""
        self.stopping.set()

    async def _answer(self, request: Request, work: Work) -> bytes:
        """What `work` makes of the body of a request, unless the page ends first."""
        answer = asyncio.ensure_future(self._computed(request, work))
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((answer, stopping), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Refused(503, "dpt view has been ended in its terminal. Start it again.")
        finally:
            answer.cancel()
            stopping.cancel()

    async def _computed(self, request: Request, work: Work) -> bytes:
        # Counted before the body is read, so that the bodies in memory are limited too.
        if self.waiting >= MOST_WAITING:
            raise Refused(503, "Too many images are waiting. Try again in a moment.")
        self.waiting += 1
        gone = threading.Event()
        watching = None
        try:
            data = await self._body(request)
            watching = asyncio.ensure_future(_set_when_gone(request, gone))
            # If it is cancelled, the page ends: then the thread is left to itself.
            return await anyio.to_thread.run_sync(lambda: work(data, lambda: not gone.is_set()), limiter=self.limiter,
                                                  abandon_on_cancel=True)
        finally:
            gone.set()  # a thread that was left to itself computes nothing more
            self.waiting -= 1
            if watching is not None:
                watching.cancel()

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Only this page can send these types: from a foreign page, a browser would ask first.
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refused(415, "Expected an image as the body of the request, with a Content-Type such as image/png.")
        limit = f"This file is larger than the limit of {self.max_bytes / 1e6:.4g} MB. Choose a smaller one."
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise Refused(413, limit)
        data = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for part in request.stream():
                    if len(data) + len(part) > self.max_bytes:
                        raise Refused(413, limit)
                    data += part
        except TimeoutError as error:
            raise Refused(408, "The file did not arrive in time. Try again.") from error
        return bytes(data)


async def _set_when_gone(request: Request, gone: threading.Event) -> None:
    """Set `gone` when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _film(query: QueryParams) -> float | None:
    return _number(query, "film", 0, *FILM) if "film" in query else None


def _number(query: QueryParams, name: str, default: float, least: float, most: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise Refused(400, f"{name}: expected a number from {least:g} to {most:g}, received {query.get(name)!r}.")
    return value


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error.status, error.sentence, {"Retry-After": "1"} if error.status == 503 else None)


def _plain(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, PLAIN.get(error.status_code, error.detail), dict(error.headers or {}))


def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


def _failed(_request: Request, _error: Exception) -> Response:
    return refusal(500, "Something went wrong with this image. The terminal shows what; other images go on.")
