"""Creates the doors of a server. A door is a listener, its TLS certificate, and the routes that its clients can use.

This module creates a `Connection` for each client. This module does not depend on signals or on the phases of the
server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from foldserve.service.access.hosts import HostCheck
from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.errors import StartError
from foldserve.service.http.acceptor import Acceptor
from foldserve.service.http.connection import Connection
from foldserve.service.http.context import ConnectionContext, Limits
from foldserve.service.http.late_app import LateApp, answering_head
from foldserve.service.http.listeners import Listeners, is_on_loopback
from foldserve.service.http.observed import ObservedConnection
from foldserve.service.http.security import secured
from foldserve.service.http.shares import Share
from foldserve.service.http.tls import Tls
from foldserve.service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

# The tasks of aborted connections need some turns of the event loop to end. After this number of seconds, uvicorn
# cancels the tasks that have not ended.
_SECONDS_AFTER_ABORT = 2


@dataclass(frozen=True)
class Door:
    """One listener with its app. config: uvicorn's configuration, which contains the app.

    context: the context of every connection. tls: the certificates; None if the connections do not use TLS.
    """

    listener: socket.socket
    config: uvicorn.Config
    context: ConnectionContext
    tls: Tls | None

    @property
    def socket_path(self) -> str | None:
        """The path of the Unix socket; None if the listener has a port."""
        return self.listener.getsockname() if self.listener.family == socket.AF_UNIX else None

    @property
    def url(self) -> str:
        """The address of the listener as a URL without a path. For a Unix socket, the host is localhost."""
        if self.socket_path is not None:
            return "http://localhost" if self.tls is None else "https://localhost"
        host, port = self.listener.getsockname()[:2]
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def acceptor(self, state: ServerState) -> Acceptor:
        """Create the acceptor for the clients of the listener.

        state: the state of the uvicorn server; uvicorn counts the clients in this state.
        """
        tls = self.tls
        create_protocol = partial(_create_connection, self.context, self.config, state)
        return Acceptor(
            self.listener, create_protocol, self.context.share, lambda: None if tls is None else tls.context
        )

    def tick(self) -> None:
        """Run the tasks that are due once a second."""
        self.context.tick()
        if self.tls is not None:
            self.tls.refresh()


def load_tls(settings: Settings, listeners: Listeners) -> Sequence[Tls | None]:
    """Load the TLS certificates for each listener. Raises `StartError`."""
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None:
        if key is not None or client_ca is not None:
            raise StartError("TLS needs --tls-cert")
        return [None for _ in listeners.all]
    return [
        # If the administration port is on loopback, probes and scrapers need no client certificate there.
        Tls(certificate, key, None if listener is listeners.admin and is_on_loopback(listener) else client_ca)
        for listener in listeners.all
    ]


def create_doors(
    settings: Settings, service: Service, listeners: Listeners, tls: Sequence[Tls | None]
) -> Sequence[Door]:
    """Create a door for each listener, starting with the main listener. tls: the result of `load_tls`."""
    door = partial(_create_door, settings, service, listeners.share, cache(partial(_create_app, service)))
    if listeners.admin is None:
        return [door(tuple(Scope), listeners.main, settings.host, service.endpoints, tls[0])]
    return [
        door((Scope.OPEN, Scope.PREDICT), listeners.main, settings.host, service.endpoints, tls[0]),
        door((Scope.OPEN, Scope.METRICS, Scope.ADMIN), listeners.admin, settings.admin_host, {}, tls[1]),
    ]


def _create_door(
    settings: Settings,
    service: Service,
    share: Share,
    create_app: Callable[[], FastAPI],
    scopes: Collection[Scope],
    listener: socket.socket,
    host: str,
    endpoints: Mapping[bytes, Endpoint],
    tls: Tls | None,
) -> Door:
    """Create one door.

    create_app: a function that returns the app that all doors share. scopes: the scopes of the routes that this door
    has. host: the host in the settings. endpoints: the endpoints that connections use, by path.
    """
    # A Unix socket allows every host, because web pages can't reach the socket, and a proxy may send any Host header.
    address = "" if listener.family == socket.AF_UNIX else listener.getsockname()[0]
    context = ConnectionContext(
        endpoints,
        Limits(settings.max_head, settings.max_body, settings.request_timeout, settings.idle_timeout),
        service.memory,
        service.metrics.count_rejected,
        share,
        observer=service.observer,
        guard=service.guard,
        check_head=HostCheck(settings.allowed_hosts, host, address, settings.cors_origins).check,
        cors=bool(settings.cors_origins),
    )
    app = LateApp(service, partial(_guard_app, create_app, service, scopes))
    config = uvicorn.Config(
        secured(answering_head(app), settings.cors_origins),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # the observer writes the access log
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.idle_timeout)),
        timeout_graceful_shutdown=settings.drain_timeout + _SECONDS_AFTER_ABORT,
    )
    config.load()
    return Door(listener, config, context, tls)


# The next two functions import FastAPI themselves, because `late_app.py` calls them only when a request needs FastAPI.


def _create_app(service: Service) -> FastAPI:
    from foldserve.service.http.app import create_app

    return create_app(service)


def _guard_app(create_app: Callable[[], FastAPI], service: Service, scopes: Collection[Scope]) -> ASGIApp:
    from foldserve.service.http.guarded import GuardedApp

    return GuardedApp(create_app(), service, scopes)


def _create_connection(context: ConnectionContext, config: uvicorn.Config, state: ServerState) -> Connection:
    """Create the connection of one client. The protocol of uvicorn answers each request that is not a prediction."""
    create_inner = partial(HttpToolsProtocol, config, state, {})
    connections = cast(set[Connection], state.connections)
    if context.observer is None:
        return Connection(context, create_inner, connections)
    return ObservedConnection(context, create_inner, connections, context.observer)
