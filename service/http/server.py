"""Runs one uvicorn server on the listeners: starts it, announces it, drains it and stops it.

This module handles the signals, the log and the exit of the process. With several workers, each worker runs
`serve_in_worker`. This module does not depend on models or protocols.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from foldserve.service.compose import Service, compose
from foldserve.service.engine.self_check import SelfCheck
from foldserve.service.errors import DeviceError, StartError
from foldserve.service.http.acceptor import Acceptor
from foldserve.service.http.announcement import announcement
from foldserve.service.http.connection import Connection
from foldserve.service.http.doors import Door, create_doors, load_tls
from foldserve.service.http.hung import end_if_hung
from foldserve.service.http.listeners import Listeners, bind, warn_if_open
from foldserve.service.http.startup import StartupResponder
from foldserve.service.http.stopping import HANDSHAKE_SECONDS, UNREADY_SIGNAL, exit_on_signals, refuse_handshakes
from foldserve.service.live.control import Control, LocalControl
from foldserve.service.live.coordinator import create_coordinator
from foldserve.service.machine import allocator
from foldserve.service.settings import Settings, unused_variables
from foldserve.service.telemetry.log_format import formatter

if TYPE_CHECKING:
    from foldserve.service.rpc.server import RpcServer

log = logging.getLogger("foldserve")

# The number of seconds after which Python takes the interpreter's lock from a thread if another thread waits for the
# lock. Python's default for this number is 5 ms. While a thread decodes a large body, the event loop may have to wait
# this long for the lock before it handles an event.
_SWITCH_INTERVAL = 1e-3


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and raise `SystemExit(0)`.

    Raises `StartError` if the port is not available, `DeviceError` if a device is lost, and the errors of `compose`.
    """
    exit_on_signals()
    _log_to_stderr(settings)
    for sentence in unused_variables():
        log.warning("%s", sentence)
    with bind(settings) as listeners, _answering_early(settings, listeners) as on_loaded:

        def announce(text: str) -> None:
            # warns only now, because a server that can't start should log only one line
            warn_if_open(settings, listeners)
            _print(text)

        if settings.workers == 1:
            control = LocalControl(partial(create_coordinator, settings))
            _serve(settings, listeners, announce, control, on_loaded=on_loaded)
        else:
            # This import is not at the top of the module, because it loads prometheus_client in the mode that several
            # processes need.
            from foldserve.service.http.workers import supervise

            supervise(serve_in_worker, settings, listeners, announce, on_loaded=on_loaded)


@contextmanager
def _answering_early(settings: Settings, listeners: Listeners) -> Iterator[Callable[[], object]]:
    """Answer clients while the models are loaded, unless `early_port` is off.

    Yields a function that the server must call before it accepts connections. The context manager and the yielded
    function raise `StartError`.
    """
    tls = load_tls(settings, listeners)  # loaded first, so that an error in a certificate file is reported immediately
    if not settings.early_port:
        yield listeners.listen
        return
    responder = StartupResponder(listeners, tls)
    responder.start()
    try:
        yield responder.stop
    finally:
        responder.join()


def serve_in_worker(
    settings: Settings, listeners: Listeners, announce: Callable[[str], object], control: Control
) -> None:
    """Serve in one of several worker processes.

    The supervisor logs that the server has stopped, so a worker does not log this.
    """
    exit_on_signals(quietly=True)
    _log_to_stderr(settings)
    _serve(settings, listeners, announce, control)


def _print(text: str) -> None:
    with suppress(OSError):  # the server must serve even if its standard output is a file on a full disk
        print(text, flush=True)


def _serve(
    settings: Settings,
    listeners: Listeners,
    announce: Callable[[str], object],
    control: Control,
    on_loaded: Callable[[], object] = lambda: None,
) -> None:
    """Serve in this process, on sockets that are bound.

    announce: a function that is called with the lines to print when the server is ready. on_loaded: a function that is
    called before this process accepts connections.
    """
    tls = load_tls(settings, listeners)
    allocator.return_large_blocks()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    service = compose(settings, control)
    doors = create_doors(settings, service, listeners, tls)
    # At this point, all models are loaded and verified, and this process has not accepted any connection yet.
    service.lifecycle.start()
    signal.signal(UNREADY_SIGNAL, lambda *_: service.lifecycle.drain())
    lines = announcement([door.url for door in doors], service, doors[0].socket_path)
    server = _Server(settings, doors, service, partial(announce, lines))
    stopped = threading.Event()
    end_if_hung(settings, service, stopped)
    try:
        on_loaded()
        server.run(sockets=list(listeners.all))
    finally:  # if a signal has stopped uvicorn, uvicorn raises the same signal again here
        stopped.set()
        service.close()
    control.join()
    if service.lifecycle.lost:  # a supervisor must start a new process, which may be able to use the device again
        raise DeviceError(service.lifecycle.loss)


class _Server(uvicorn.Server):
    """A uvicorn server that prints its announcement, checks its connections, and stops if a device is lost."""

    def __init__(
        self, settings: Settings, doors: Sequence[Door], service: Service, announce: Callable[[], object]
    ) -> None:
        super().__init__(doors[0].config)
        self._settings = settings
        self._doors = doors
        self._service = service
        self._announce = announce
        self._acceptors: list[Acceptor] = []
        self._rpc: RpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (each door has its own)
        await super().startup([])  # no sockets, because uvicorn accepts only one connection per turn of the loop
        self._acceptors = [door.acceptor(self.server_state) for door in self._doors]
        for acceptor in self._acceptors:
            acceptor.start()
        self._service.deployment.attach(asyncio.get_running_loop())
        self._service.control.follow()
        SelfCheck(self._service.repository, self._settings.self_check).start()
        self._rpc = _rpc_server(self._settings, self._service)  # needs the running event loop
        if self._rpc is not None:
            await self._rpc.start()
        # All objects that exist now stay until the process ends. `freeze` excludes all existing objects from later
        # garbage collections. Hardly any object is garbage, so a collection now would only make the start longer.
        gc.freeze()
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Stop if a device is lost, and run the periodic tasks. uvicorn calls this method ten times a second."""
        if self._service.lifecycle.lost:
            log.error("%s; stopping", self._service.lifecycle.loss)
            self._service.repository.abandon_hung()
            self.should_exit = True
        if counter % 10 == 0:
            try:
                self._run_periodic_tasks()
                if self._rpc is not None:
                    await self._rpc.tick()
            except Exception:  # an error in a periodic task, such as a full disk, must not stop the server
                log.exception("internal error")
        return await super().on_tick(counter)

    def _run_periodic_tasks(self) -> None:
        for door in self._doors:
            door.tick()
        if self._service.guard is not None:
            self._service.guard.refresh()
        now = time.monotonic()
        for connection in self._connections():
            connection.check_time(now)
        self._service.quality.tick()
        self._service.metrics.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Become unready, let uvicorn wait for the requests that have begun, and abort the remaining connections."""
        self._service.control.stop()
        await self._wait_for_balancers()
        # with several workers, only the supervisor refuses handshakes, because other workers may continue to serve
        if self._settings.workers == 1:
            for listener in sockets or ():
                refuse_handshakes(listener)
            await asyncio.sleep(HANDSHAKE_SECONDS)
        for acceptor in self._acceptors:
            await acceptor.stop()
        # If a client does not read its response, uvicorn would cancel the client's task at the end of uvicorn's own
        # waiting time, and log a traceback. Therefore, the server aborts the remaining connections earlier, after
        # drain_timeout, and `doors.py` gives uvicorn a longer waiting time.
        loop = asyncio.get_running_loop()
        loop.call_later(self._settings.drain_timeout, self._abort_connections)
        async with asyncio.TaskGroup() as group:  # the gRPC server and uvicorn drain at the same time
            if self._rpc is not None:
                group.create_task(self._rpc.stop(self._settings.drain_timeout))
            await super().shutdown(sockets)
        self._service.repository.drain()
        self._abort_connections()
        await asyncio.sleep(0)  # lets the event loop call connection_lost

    def _abort_connections(self) -> None:
        for connection in self._connections():
            connection.abort()

    async def _wait_for_balancers(self) -> None:
        """Become unready, but answer requests for `drain_delay` more seconds, so that load balancers notice the change.

        If the server has several workers, the supervisor makes all of them unready and waits for `drain_delay`, so the
        workers themselves do not wait.
        """
        lifecycle = self._service.lifecycle
        end = time.monotonic() + (self._settings.drain_delay if lifecycle.ready else 0)
        lifecycle.drain()
        counter = 0
        while time.monotonic() < end and not self.force_exit and not lifecycle.lost:
            counter += 1
            await self.on_tick(counter)
            await asyncio.sleep(0.1)

    def _connections(self) -> list[Connection]:
        """Return the connections of all clients.

        This method skips the inner protocols, which uvicorn stores in the same set as the connections.
        """
        return [found for found in tuple(self.server_state.connections) if isinstance(found, Connection)]


def _rpc_server(settings: Settings, service: Service) -> RpcServer | None:
    """Create the gRPC server if the settings ask for it. Raises `StartError` if grpcio is not installed."""
    if settings.grpc_port is None:
        return None
    try:
        # This import is not at the top of the module, because it takes long and fails without the extra `grpc`.
        from foldserve.service.rpc.server import RpcServer
    except ImportError as error:
        raise StartError("--grpc-port needs grpcio: pip install 'foldserve[grpc]'") from error
    return RpcServer(settings, service)


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # Another module logs changed models; watchfiles would also log each changed file.
    logging.getLogger("watchfiles").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
    # This module logs the same events as uvicorn, so uvicorn logs only warnings.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
