"""The sockets on which a server listens: one for predictions, and perhaps another for metrics and administration.

This module knows addresses, but no protocol.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from foldserve.service.access.hosts import is_loopback
from foldserve.service.errors import StartError
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

_BACKLOG = 2048  # the most connections in the kernel's queue, before the server accepts them


@dataclass(frozen=True)
class Listeners:
    """The bound sockets of a server. One process can pass this object to another.

    admin: the socket of metrics and administration; None if they use the main socket.
    """

    main: socket.socket
    admin: socket.socket | None

    @property
    def all(self) -> Sequence[socket.socket]:
        """The sockets, the main one first."""
        return [self.main] if self.admin is None else [self.main, self.admin]

    def listen(self) -> None:
        """Let clients connect. Raises `StartError`."""
        for listener in self.all:
            host, port = listener.getsockname()[:2]
            with _one_line_errors(host, port):
                listener.listen(_BACKLOG)

    def close(self) -> None:
        """Close the sockets in this process."""
        for listener in self.all:
            listener.close()


def is_on_loopback(listener: socket.socket) -> bool:
    """Return whether only clients on this machine can reach a listener."""
    return is_loopback(listener.getsockname()[0])


@contextmanager
def bind(settings: Settings) -> Iterator[Listeners]:
    """Bind the ports, but do not listen until the models are loaded. Raises `StartError`.

    Logs a warning if clients on other machines need neither an API key nor a certificate.
    """
    main = _bind(settings.host, settings.port)
    try:
        admin = None if settings.admin_port is None else _bind(settings.admin_host, settings.admin_port)
    except StartError:
        main.close()
        raise
    listeners = Listeners(main, admin)
    try:
        # The kernel lets a process bind two sockets to one port, but only one of them may listen.
        if admin is not None and admin.getsockname() == main.getsockname():
            raise StartError(f"--port and --admin-port are both {settings.admin_port}")
        if not settings.keys and settings.tls_client_ca is None:
            _warn_if_open(listeners)
        yield listeners
    finally:
        listeners.close()


def _warn_if_open(listeners: Listeners) -> None:
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
    with _one_line_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        with _one_line_errors(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except StartError:
        listener.close()
        raise
    return listener


@contextmanager
def _one_line_errors(host: str, port: int) -> Iterator[None]:
    """Turn an error of the socket into a `StartError`."""
    try:
        yield
    except UnicodeError as error:
        raise StartError(f"can't listen on {host} port {port}: no such host") from error
    except OSError as error:
        raise StartError(f"can't listen on {host} port {port}: {error.strerror}") from error
