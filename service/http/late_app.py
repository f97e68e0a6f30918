"""The ASGI app that answers the requests of one listener.

The app answers health probes itself, and creates the FastAPI app when a request needs it. FastAPI and its routes take
0.2 s of processor time and 11 MB. A server that only answers predictions and probes does not need FastAPI, so a thread
imports FastAPI only when the first request for one of its routes arrives. This module does not depend on FastAPI.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from foldserve.service.compose import Service
from foldserve.service.http.health import PROBES
from foldserve.service.protocols.reply import Reply, failure

log = logging.getLogger("foldserve")


class LateApp:
    """An ASGI app for HTTP. create: a function that creates the app for all requests except health probes.

    `create` is called on a thread, until it succeeds once.
    """

    def __init__(self, service: Service, create: Callable[[], ASGIApp]) -> None:
        self._service = service
        self._create = create
        self._app: ASGIApp | None = None
        self._creating: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        probe = PROBES.get(scope["path"]) if scope["method"] == "GET" else None
        if probe is not None:
            await _send(probe(self._service), send)
            return
        if self._app is None:
            if self._creating is None:
                self._creating = asyncio.create_task(self._create_app())
            await asyncio.shield(self._creating)  # a request that is cancelled must not stop the other requests
        if self._app is None:
            await _send(failure(503, "the server can't load this route now; its log has the reason", 1), send)
            return
        await self._app(scope, receive, send)

    async def _create_app(self) -> None:
        """Create the app. After a failure, for example without a free file descriptor, the next request tries again."""
        try:
            self._app = await asyncio.to_thread(self._create)
        except Exception:
            log.exception("can't load the routes that are not for predictions")
        else:
            gc.freeze()  # the app stays until the end, so later garbage collections should skip it
        finally:
            self._creating = None


def answering_head(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that it answers HEAD like GET.

    The server sends no body, because it still knows that the method is HEAD.
    """

    async def with_get(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return with_get


async def _send(reply: Reply, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(reply.body)), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
