"""One listening socket and one uvicorn server on it: start, announce, drain, stop.

It owns the process: its signals, its log, its exit. With several workers, each one runs `serve_in_worker`. It does not
know models or protocols.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from foldserve.service.access.hosts import HostCheck
from foldserve.service.compose import Service, compose
from foldserve.service.errors import DeviceError, StartError
from foldserve.service.http.acceptor import Acceptor
from foldserve.service.http.access_log import AccessLog
from foldserve.service.http.announcement import announcement
from foldserve.service.http.app import answering_head, create_app
from foldserve.service.http.connection import Connection
from foldserve.service.http.context import ConnectionContext, Limits
from foldserve.service.http.guarded import GuardedApp
from foldserve.service.http.security import secured
from foldserve.service.settings import Settings, unused_variables

log = logging.getLogger("foldserve")

_BACKLOG = 2048  # connections that the kernel queues for accept; uvicorn's default


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and raise `SystemExit(0)`.

    Raises `StartError` if the port is not available, `DeviceError` if a device is lost, and the errors of `compose`.
    """
    _exit_on_signals()
    _log_to_stderr(settings)
    for sentence in unused_variables():
        log.warning("%s", sentence)
    with _bind(settings.host, settings.port) as listener:
        if settings.workers == 1:
            _serve(settings, listener, _print)
        else:
            # Imported late: prometheus_client's multiprocess mode is only for several workers.
            from foldserve.service.http.workers import supervise

            supervise(serve_in_worker, settings, listener, _print)


def serve_in_worker(settings: Settings, listener: socket.socket, announce: Callable[[str], object]) -> None:
    """Serve in one of several processes. Their supervisor logs that the server has stopped."""
    _exit_on_signals(quietly=True)
    _log_to_stderr(settings)
    _serve(settings, listener, announce)


def _print(text: str) -> None:
    with suppress(OSError):  # the server serves even if its standard output is a full disk
        print(text, flush=True)


def _serve(settings: Settings, listener: socket.socket, announce: Callable[[str], object]) -> None:
    """Serve on `listener`, a bound socket, in this process. announce: called with the lines to print when ready."""
    service = compose(settings)
    app = create_app(service)
    # No client can connect before this: every model is verified by now.
    service.lifecycle.start()
    with _one_line_errors(settings.host, settings.port):
        listener.listen(_BACKLOG)
    host, port = listener.getsockname()[:2]
    context = _connection_context(service, settings, host)
    config = uvicorn.Config(
        secured(answering_head(GuardedApp(app, service)), settings.cors_origins),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        backlog=_BACKLOG,
        log_config=None,
        access_log=settings.access_log,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.idle_timeout)),
        timeout_graceful_shutdown=settings.drain_timeout,
    )
    server = _Server(config, service, context, partial(announce, announcement(host, port, service.repository)))
    server.run(sockets=[listener])
    if service.lifecycle.lost:  # a new process may be able to use the device: its supervisor decides
        raise DeviceError("the device was lost")


def _connection_context(service: Service, settings: Settings, address: str) -> ConnectionContext:
    return ConnectionContext(
        service.endpoints,
        Limits(settings.max_head, settings.max_body, settings.request_timeout, settings.idle_timeout),
        service.metrics.count_rejected,
        AccessLog() if settings.access_log else None,
        guard=service.guard,
        check_head=HostCheck(settings.allowed_hosts, settings.host, address, settings.cors_origins).check,
        cors=bool(settings.cors_origins),
    )


def _create_connection(context: ConnectionContext, config: uvicorn.Config, state: ServerState) -> Connection:
    """Create the protocol of one client. uvicorn's own protocol answers what is not a prediction."""
    create_inner = partial(HttpToolsProtocol, config, state, {})
    return Connection(context, create_inner, cast(set[Connection], state.connections))


class _Server(uvicorn.Server):
    """A uvicorn server that announces itself, checks its connections and stops when a device is lost."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        context: ConnectionContext,
        announce: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._service = service
        self._context = context
        self._announce = announce
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # uvicorn would accept one connection in each turn of the event loop
        create_protocol = partial(_create_connection, self._context, self.config, self.server_state)
        self._acceptors = [Acceptor(listener, create_protocol, self.config.ssl) for listener in sockets or ()]
        for acceptor in self._acceptors:
            acceptor.start()
        # The objects that exist now stay until the end. Frozen, they cost no time at each garbage collection.
        gc.collect()
        gc.freeze()
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Stop if a device is lost, and run the tasks of each second. uvicorn calls this ten times a second."""
        if self._service.lifecycle.lost:
            log.error("the device was lost; stopping")
            self.should_exit = True
        if counter % 10 == 0:
            try:
                self._run_periodic_tasks()
            except Exception:  # for example a full disk for the counts of several workers: the server must go on
                log.exception("internal error")
        return await super().on_tick(counter)

    def _run_periodic_tasks(self) -> None:
        self._context.tick()
        if self._service.guard is not None:
            self._service.guard.refresh()
        now = time.monotonic()
        for connection in self._connections():
            connection.check_time(now)
        self._service.metrics.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Become unready, let uvicorn wait for the requests that have begun, then cut off the rest."""
        self._service.lifecycle.drain()
        for acceptor in self._acceptors:
            await acceptor.stop()
        # uvicorn would cancel the tasks of clients that do not read, each with a traceback in the log.
        loop = asyncio.get_running_loop()
        loop.call_later(self.config.timeout_graceful_shutdown or 0, self._abort_connections)
        await super().shutdown(sockets)
        self._service.repository.drain()
        self._abort_connections()
        await asyncio.sleep(0)  # until the event loop has called connection_lost

    def _abort_connections(self) -> None:
        for connection in self._connections():
            connection.abort()

    def _connections(self) -> list[Connection]:
        """List the clients' connections. uvicorn keeps the protocols inside them in the same set."""
        return [found for found in tuple(self.server_state.connections) if isinstance(found, Connection)]


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=settings.log_level.upper(),
        stream=sys.stderr,
    )
    # This module logs the same events as uvicorn.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))


def _exit_on_signals(*, quietly: bool = False) -> None:
    """Raise `SystemExit(0)` on SIGTERM and SIGINT.

    Process 1 of a container has no default handlers, so it would ignore these signals. uvicorn drains first, then
    raises the signal again for the handler that was installed before its own.
    """

    def handle(_: int, __: object) -> NoReturn:
        if not quietly:
            log.info("stopped")
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


@contextmanager
def _bind(host: str, port: int) -> Iterator[socket.socket]:
    """Bind the port before the models are loaded, without listening."""
    with _one_line_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        with _one_line_errors(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        yield listener


@contextmanager
def _one_line_errors(host: str, port: int) -> Iterator[None]:
    """Turn an error of the socket into a `StartError`."""
    try:
        yield
    except UnicodeError as error:
        raise StartError(f"can't listen on {host} port {port}: no such host") from error
    except OSError as error:
        raise StartError(f"can't listen on {host} port {port}: {error.strerror}") from error
