"""Adds response headers that tell browsers to protect their users.

Some headers are for all responses, some only for HTML pages, and some only for responses to web pages of other sites.
This module uses ASGI, and does not depend on routes.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foldserve.service.telemetry.record import current_record
from foldserve.service.telemetry.trace_context import safe_id

# Every response has this header, so that a browser does not show JSON as a page.
NO_SNIFF = (b"x-content-type-options", b"nosniff")
_EXPOSED = ("Content-Encoding", "Inference-Header-Content-Length", "Retry-After", "WWW-Authenticate", "X-Request-Id")
EXPOSED_HEADERS = (b"access-control-expose-headers", ", ".join(_EXPOSED).encode())

# The headers of the page at /. The page at / loads only files of this server. The page has no inline script or style,
# and no other page can show the page in a frame.
STRICT_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

# The headers of the page at /docs. The page at /docs loads only files of this server. No other page can show the page
# at /docs in a frame. The browser does not send the address of the page to other sites.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def secured(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Wrap the app so that its responses have the security headers.

    origins: the other sites whose pages may use the app; `*` allows all sites.
    """
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )

    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], NO_SNIFF]
                if request_id := _request_id(scope):
                    message["headers"].append((b"x-request-id", request_id))
            await send(message)

        await app(scope, receive, add)

    return with_headers


def _request_id(scope: Scope) -> bytes:
    """Return the identifier of a request.

    Return empty bytes if the client sent no identifier and the request has no record.
    """
    record = current_record.get()
    if record is not None:
        return record.request_id
    return safe_id(dict(scope["headers"]).get(b"x-request-id", b""))
