"""Runs the service as an ASGI app inside the server of another program, such as a replica of Ray Serve.

This module starts and stops the service when it receives the lifespan messages of ASGI. The other program handles
sockets, HTTP, signals and processes. https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foldserve.service.access.hosts import HostCheck
from foldserve.service.access.keys import Scope as KeyScope
from foldserve.service.compose import Service, compose
from foldserve.service.engine.exchange import CLIENT_DISCONNECTED
from foldserve.service.engine.self_check import SelfCheck
from foldserve.service.errors import DeviceError, RequestError, SettingsError
from foldserve.service.http.app import create_app
from foldserve.service.http.guarded import GuardedApp
from foldserve.service.http.hung import end_if_hung
from foldserve.service.http.late_app import answering_head
from foldserve.service.http.routes.common import to_response
from foldserve.service.http.security import secured
from foldserve.service.machine import allocator
from foldserve.service.protocols.reply import refusal
from foldserve.service.settings import Settings
from foldserve.service.telemetry.record import Observer, Record, current_record, note_error
from foldserve.service.telemetry.trace_context import safe_id

log = logging.getLogger("foldserve")

# foldserve refuses these settings, because the server of the other program decides their values.
FOREIGN_SETTINGS = frozenset(
    {
        *("host", "port", "uds", "grpc_port", "admin_port", "admin_host", "tls_cert", "tls_key", "tls_client_ca"),
        *("workers", "max_head", "request_timeout", "idle_timeout", "early_port", "drain_delay", "drain_timeout"),
        "log_level",
    }
)


def check_settings(settings: Settings) -> None:
    """Raise `SettingsError` if a setting is given that has no effect inside the server of another program."""
    for name in sorted(settings.model_fields_set & FOREIGN_SETTINGS):
        raise SettingsError(f"setting {name!r}: it has no effect inside another server; remove it")


class EmbeddedService:
    """An ASGI app that serves the models of `settings`. The server that runs this app must use the lifespan protocol.

    The app has the routes for predictions, explanations and health. The app has no routes for metrics and
    administration. If several processes run behind a load balancer, a request for metrics or administration would reach
    only one of them.
    """

    def __init__(self, settings: Settings) -> None:
        """Load and verify every model. Raises `SettingsError` and the exceptions of `compose`."""
        check_settings(settings)
        allocator.return_large_blocks()
        self._settings = settings
        self._service = compose(settings)
        self._stopped = threading.Event()
        self._check_host = HostCheck(settings.allowed_hosts, "localhost", "", settings.cors_origins).check
        app: ASGIApp = GuardedApp(create_app(self._service), self._service, (KeyScope.OPEN, KeyScope.PREDICT))
        app = self._checking_hosts(secured(answering_head(app), settings.cors_origins))
        self._app = app if self._service.observer is None else observed(app, self._service.observer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or handle the lifespan messages of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        # The server may have mounted this app at a prefix. The routes and the guard expect paths without this prefix.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        await self._app({**scope, "path": path or "/", "root_path": ""}, receive, send)

    def check_health(self) -> None:
        """Raise `DeviceError` if only a new process can answer requests."""
        if self._service.lifecycle.lost:
            raise DeviceError(self._service.lifecycle.loss)

    # --- the lifespan -------------------------------------------------------------------------------------------------

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        service = self._service
        service.deployment.attach(asyncio.get_running_loop())
        service.control.follow()
        SelfCheck(service.repository, self._settings.self_check).start()
        end_if_hung(self._settings, service, self._stopped)
        service.lifecycle.start()
        ticking = asyncio.create_task(_tick(service))
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        service.lifecycle.drain()
        service.control.stop()
        service.repository.drain()
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        self._stopped.set()
        await asyncio.to_thread(service.close)
        await asyncio.to_thread(service.control.join)
        await send({"type": "lifespan.shutdown.complete"})

    def _checking_hosts(self, app: ASGIApp) -> ASGIApp:
        """Wrap an app so that it refuses requests from web pages that must not use the app."""

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                try:
                    self._check_host(dict(scope["headers"]))
                except RequestError as error:
                    self._service.metrics.count_rejected(error)
                    note_error(error)
                    await to_response(refusal(error))(scope, receive, send)
                    return
            await app(scope, receive, send)

        return checked


async def _tick(service: Service) -> None:
    """Run the tasks that are due once a second."""
    while True:
        try:
            if service.guard is not None:
                service.guard.refresh()
            service.quality.tick()
            service.metrics.flush()
        except Exception:  # an error in these tasks, such as a full disk, must not stop the server
            log.exception("internal error")
        await asyncio.sleep(1)


def observed(app: ASGIApp, observer: Observer) -> ASGIApp:
    """Wrap an app so that each request to the app has a record."""

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        record = _record(scope)
        status = CLIENT_DISCONNECTED

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        observer.begin(record)
        token = current_record.set(record)
        try:
            await app(scope, receive, watched)
        finally:
            current_record.reset(token)
            observer.finish(record, status)

    return recording


def _record(scope: Scope) -> Record:
    """Create the record of a request."""
    headers = dict(scope["headers"])
    query = scope["query_string"]
    url = scope.get("raw_path") or scope["path"].encode()
    client = ":".join(map(str, scope.get("client") or ()))
    raw = b"\r\n" + b"".join(b"%b: %b\r\n" % header for header in scope["headers"])
    identity = safe_id(headers.get(b"x-request-id", b""))
    method = scope["method"].encode()
    return Record(method, url + (b"?" + query if query else b""), headers, raw, identity, client, secure=False)
