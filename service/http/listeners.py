"""Binds the sockets of a server: one for predictions, and perhaps another one for metrics and administration.

This module knows addresses and sockets, but no protocol such as HTTP or gRPC.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from foldserve.service.access.hosts import is_loopback
from foldserve.service.errors import StartError
from foldserve.service.http.shares import Share
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

BACKLOG = 2048  # the largest number of connections in the kernel's queue of each listener


@dataclass(frozen=True)
class Listeners:
    """The bound sockets of a server. A process can pass this object to another process.

    admin: the socket for metrics and administration; None if metrics and administration use the main socket. share:
    counts the connections of this process. Only several workers compare their counts.
    """

    main: socket.socket
    admin: socket.socket | None
    share: Share = field(default_factory=lambda: Share([0], 0))

    @property
    def all(self) -> Sequence[socket.socket]:
        """All sockets, with the main socket first."""
        return [self.main] if self.admin is None else [self.main, self.admin]

    def listen(self) -> None:
        """Let clients connect. Raises `StartError`."""
        for listener in self.all:
            with _one_line_errors(_name(listener)):
                listener.listen(BACKLOG)

    def close(self) -> None:
        """Close the sockets in this process."""
        for listener in self.all:
            listener.close()


def is_on_loopback(listener: socket.socket) -> bool:
    """Return whether only clients on this machine can reach a listener."""
    return listener.family == socket.AF_UNIX or is_loopback(listener.getsockname()[0])


@contextmanager
def bind(settings: Settings) -> Iterator[Listeners]:
    """Bind the ports. The sockets do not listen until the caller calls `Listeners.listen`. Raises `StartError`."""
    main = _bind(settings.host, settings.port) if settings.uds is None else _bind_path(settings.uds)
    try:
        admin = None if settings.admin_port is None else _bind(settings.admin_host, settings.admin_port)
    except StartError:
        main.close()
        _remove(settings.uds)
        raise
    listeners = Listeners(main, admin)
    try:
        # A process can bind two sockets to one port, but only one of the sockets can listen.
        if admin is not None and admin.getsockname() == main.getsockname():
            raise StartError(f"--port and --admin-port are both {settings.admin_port}")
        yield listeners
    finally:
        listeners.close()
        _remove(settings.uds)


def warn_if_open(settings: Settings, listeners: Listeners) -> None:
    """Log a warning if clients on other machines can connect without an API key and without a certificate."""
    if settings.keys or settings.tls_client_ca is not None:
        return
    for listener in listeners.all:
        if not is_on_loopback(listener):
            host, port = listener.getsockname()[:2]
            log.warning(
                "every client that can reach %s port %d may use this server: without --keys or --tls-client-ca, let "
                "only a proxy or a private network reach it",
                host,
                port,
            )


def _bind(host: str, port: int) -> socket.socket:
    name = f"{host} port {port}"
    with _one_line_errors(name):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        with _one_line_errors(name):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except StartError:
        listener.close()
        raise
    return listener


def _bind_path(path: Path) -> socket.socket:
    """Bind a Unix socket. If a server was killed, its socket file still exists, and this function removes the file."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _one_line_errors(str(path)):
            if path.is_socket():
                if _answers(path):
                    raise StartError(f"can't listen on {path}: another server listens on it")
                path.unlink()
            listener.bind(os.fspath(path))
    except StartError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    """Return whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        return True


def _remove(path: Path | None) -> None:
    """Remove the file of a Unix socket."""
    if path is not None:
        path.unlink(missing_ok=True)


def _name(listener: socket.socket) -> str:
    """Return the name of a listener for error messages."""
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"{host} port {port}"


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn an error of the socket into a `StartError`. name: the name of the socket in error messages."""
    try:
        yield
    except UnicodeError as error:
        raise StartError(f"can't listen on {name}: no such host") from error
    except OSError as error:  # if the path of a Unix socket is too long, the error has no `strerror`
        raise StartError(f"can't listen on {name}: {error.strerror or error}") from error
