"""Sends one request to a service: over TCP, a Unix socket or TLS.

The module does not depend on the URL paths of the service.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foldserve.service.errors import NotReady

# If the service listens on all addresses, the client connects to the loopback address.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass(frozen=True)
class Address:
    """The address that a service listens on.

    tls: the client's TLS context; None if the address does not use TLS. uds: the path of the Unix socket; None if the
    address is a host and a port. timeout: the time limit in seconds for each step of a request, such as the connection
    or a read.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    uds: Path | None = None
    timeout: float = 3.0

    def __str__(self) -> str:
        """Return host:port, or the path of the Unix socket."""
        if self.uds is not None:
            return str(self.uds)
        host = _LOOPBACK.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def _connect(self) -> http.client.HTTPConnection:
        host = _LOOPBACK.get(self.host, self.host)
        if self.uds is not None:
            return _UnixConnection(self.uds, self.timeout, self.tls)
        if not self.port:
            raise NotReady("port 0 means any free port: set the port that the service listens on")
        if self.tls is None:
            return http.client.HTTPConnection(host, self.port, timeout=self.timeout)
        return http.client.HTTPSConnection(host, self.port, timeout=self.timeout, context=self.tls)


@dataclass(frozen=True)
class Response:
    """A response. body: all bytes of the response body."""

    status: int
    body: bytes = field(repr=False)


def send(
    address: Address, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Send one request on a new connection.

    Raises `NotReady` with the reason if the service does not answer, or is not an HTTP server.
    """
    connection = address._connect()
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Response(response.status, response.read())
    except TimeoutError as error:
        raise NotReady(f"{address} has not answered within {address.timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        raise NotReady(f"{address} does not answer: {getattr(error, 'strerror', None) or error}") from error
    except http.client.HTTPException as error:
        raise NotReady(f"{address} does not answer in HTTP") from error
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """A client's connection over a Unix socket."""

    def __init__(self, path: Path, timeout: float, tls: ssl.SSLContext | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._tls = tls

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock)
