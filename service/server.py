"""One listening socket and one uvicorn under it: start, announce, drain, stop.

It knows processes, sockets and signals, and of the app only that it can be made.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import NoReturn

import uvicorn

from service.app import create_app
from service.errors import StartError
from service.repository import Repository
from service.settings import Settings

log = logging.getLogger("foldserve")

_BACKLOG = 2048  # connections that the kernel holds for us, as uvicorn's own default


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave by `SystemExit(0)`.

    Raises `StartError` when the port can't be had, and whatever `create_app` raises.
    """
    # First of all, since as process 1 of a container there is no default: a signal without a handler is lost. uvicorn
    # drains, and then raises the signal anew for whoever was there before it.
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, _stopped)
    with _bound(settings.host, settings.port) as listener:
        app = create_app(settings)
        # From here on it answers, and what answers is ready.
        with _refused_in_one_line(settings.host, settings.port):
            listener.listen(_BACKLOG)
        # uvicorn tells of itself what is told here already.
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
        server = _Server(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                backlog=_BACKLOG,
                log_config=None,
                access_log=settings.access_log,
                server_header=False,
                timeout_graceful_shutdown=settings.drain_timeout,
            )
        )
        server.announcement = _announcement(listener, app.state.repository)
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    announcement = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.announcement, flush=True)


def _stopped(_: int, __: object) -> NoReturn:
    log.info("stopped")
    raise SystemExit(0)


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
    row = repository.find(name).manifest.golden.inputs[0]
    values = ", ".join("null" if value is None else f"{value:.6g}" for value in row)
    return (
        f"foldserve {version('foldserve')} serves {', '.join(names)} on {url}, documentation on {url}/docs\n"
        "try:\n"
        f"""  curl -s {url}{path} -H 'Content-Type: application/json' -d '{{"instances": [[{values}]]}}'"""
    )
