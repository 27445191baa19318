"""What every request passes: is it meant for this page, and did this page send it; and the headers of its answers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                               "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says in one sentence why there is no other."""
    return JSONResponse({"error": sentence}, status, headers)


def known_host(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header may name this server: an address, localhost, or one of `names`.

    A foreign page that lets its own name point to this machine (DNS rebinding) is told apart by that name: it cannot
    make a browser send an address in its place.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _place(origin: str) -> str | None:
    """Host and port of an Origin header; None if it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as http://[
        return None


class Guard:
    """Refuse requests by a foreign name (421) or from a foreign page (403).

    These answers, and all answers of `app`, have `HEADERS`.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] = frozenset()) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(Headers(scope=scope)) or self.app
        await answer(scope, receive, with_headers)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not known_host(host, self.names):
            return refusal(421, "This page answers to its address, to localhost and to the names given with "
                                f"--allow-host, and was called by the name {host!r}.")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        followed = headers.get("sec-fetch-mode") == "navigate"  # a link to this page, which changes nothing here
        foreign = site not in ("none", "same-origin") and not followed
        if foreign or (origin is not None and _place(origin) != host):
            return refusal(403, "This request comes from another page. Open this page itself.")
        return None
