"""One listening socket and one uvicorn under it: start, announce, drain, stop. With several workers, one in each.

It knows processes, sockets and signals, and of the app only that it can be made.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import Any, NoReturn, cast

import uvicorn
from fastapi import FastAPI

from foldserve.service.engine.repository import Repository
from foldserve.service.errors import DeviceError, RequestError, StartError
from foldserve.service.http.app import create_app
from foldserve.service.http.connection import AccessLog, Limits, Protocol
from foldserve.service.protocols.friendly import example
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

_BACKLOG = 2048  # connections that the kernel holds for us, as uvicorn's own default


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave by `SystemExit(0)`.

    Raises `StartError` when the port can't be had, `DeviceError` when a device is lost, and whatever `create_app`
    raises.
    """
    _stop_by_signals()
    _log_to_stderr(settings)
    with _bound(settings.host, settings.port) as listener:
        if settings.workers == 1:
            _serve(settings, listener, _announce)
        else:
            from foldserve.service.http.workers import supervise  # what it counts with is only for several

            supervise(serve_in_worker, settings, listener, _announce)


def _announce(text: str) -> None:
    with suppress(OSError):  # a full disk takes no line, and is no reason not to serve
        print(text, flush=True)


def serve_in_worker(settings: Settings, listener: socket.socket, announce: Callable[[str], object]) -> None:
    """Serve as one of several processes, of which the one above tells that they have stopped."""
    _stop_by_signals(quietly=True)
    _log_to_stderr(settings)
    _serve(settings, listener, announce)


def _serve(settings: Settings, listener: socket.socket, announce: Callable[[str], object]) -> None:
    """Serve on `listener`, which is bound and need not listen yet, in this process; `announce` when it is ready."""
    app = create_app(settings)
    # From here on it answers, and what answers is ready.
    with _refused_in_one_line(settings.host, settings.port):
        listener.listen(_BACKLOG)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=cast(Any, _protocol(app, settings)),  # it calls what it takes for a class
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
    server = _Server(config, app, partial(announce, _announcement(listener, app.state.repository)))
    server.run(sockets=[listener])
    if server.lost:  # another process may find the device well again: that is for whoever started this one
        raise DeviceError("the device was lost")


def _protocol(app: FastAPI, settings: Settings) -> partial[Protocol]:
    def rejected(error: RequestError) -> None:
        if app.state.metrics is not None:
            app.state.metrics.reject(error)

    return partial(
        Protocol,
        endpoints=app.state.endpoints,
        limits=Limits(settings.max_head, settings.max_body, settings.request_timeout, settings.idle_timeout),
        access=AccessLog() if settings.access_log else None,
        rejected=rejected,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, announce: Callable[[], object]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce
        self.lost = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is here now stays: no collection need walk through it again, and stop the server for that.
        gc.collect()
        gc.freeze()
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Leave when a device is lost, and do what is due every second; uvicorn calls ten times as often."""
        if not self.lost and self._app.state.repository.lost:
            log.error("the device was lost; stopping")
            self.lost = self.should_exit = self._app.state.draining = True
        if counter % 10 == 0:
            try:
                self._look_after()
            except Exception:  # a full disk, say, where several workers keep their counts: it must not end the server
                log.exception("internal error")
        return await super().on_tick(counter)

    def _look_after(self) -> None:
        now = time.monotonic()
        for connection in tuple(self.server_state.connections):
            cast(Protocol, connection).check(now)
        if self._app.state.metrics is not None:
            self._app.state.metrics.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Be unready first; what has begun is finished while uvicorn waits for its connections."""
        self._app.state.draining = True
        await super().shutdown(sockets)
        # Whoever has not finished in time.
        for model in self._app.state.repository.live():
            model.batcher.drain()
        for connection in tuple(self.server_state.connections):
            cast(Protocol, connection).transport.abort()
        await asyncio.sleep(0)  # until the loop has let go of them


def _log_to_stderr(settings: Settings) -> None:
    """Write the log of this process to standard error."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=settings.log_level.upper(),
        stream=sys.stderr,
    )
    # uvicorn tells of itself what is told here already.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))


def _stop_by_signals(*, quietly: bool = False) -> None:
    """Leave by `SystemExit(0)` on SIGTERM and SIGINT.

    As process 1 of a container there is no default: a signal without a handler is lost. uvicorn drains, and then
    raises the signal anew for whoever was there before it.
    """

    def stopped(_: int, __: object) -> NoReturn:
        if not quietly:
            log.info("stopped")
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before the models are loaded, but don't listen yet."""
    with _refused_in_one_line(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        with _refused_in_one_line(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        yield listener


@contextmanager
def _refused_in_one_line(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise StartError(f"can't listen on {host} port {port}: no such host") from error
    except OSError as error:
        raise StartError(f"can't listen on {host} port {port}: {error.strerror}") from error


def _announcement(listener: socket.socket, repository: Repository) -> str:
    """Say where it is, and give a command to try that works as it stands."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = repository.names()
    name = repository.default or names[0]
    path = "/predict" if repository.default else f"/v1/models/{name}:predict"
    manifest = repository.find(name).manifest
    values = ", ".join(
        f"{value:.6g}" if feature.kind == "numeric" and value is not None else json.dumps(value)
        for feature, value in zip(manifest.features, example(manifest), strict=True)
    )
    rows = shlex.quote(f'{{"instances": [[{values}]]}}')
    return (
        f"foldserve {version('foldserve')} serves {', '.join(names)} on {url}, documentation on {url}/docs\n"
        "try:\n"
        f"  curl -s {url}{path} -H 'Content-Type: application/json' -d {rows}"
    )
