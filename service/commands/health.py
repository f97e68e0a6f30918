"""`foldserve health`: asks a running service whether it is ready. A container needs no curl for its health check.

This module knows an address and one path of the Open Inference Protocol, but not the modules of the server.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from pathlib import Path

from foldserve.service.errors import NotReady
from foldserve.service.settings import Settings

# If the service listens on all addresses, this address is asked.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def run(settings: Settings) -> None:
    """Print the address of the service with these settings if it is ready. Raises `NotReady` if it is not."""
    host, port, uds = settings.host, settings.port, settings.uds
    if settings.tls_client_ca is not None and settings.admin_port is not None:
        uds = None
        host, port = settings.admin_host, settings.admin_port  # on loopback, this port needs no client certificate
    print(f"ready: {ask(host, port, timeout=3, tls=_tls(settings), uds=uds)}")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Create the TLS context of a client that trusts any certificate.

    Trusting any certificate is safe here, since the client sends no secret and the server is on this machine. If the
    server requires a certificate from clients, this client uses the server's certificate.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls_client_ca is not None:
        try:
            # With an empty password, OpenSSL never asks for a password on the terminal.
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")  # nosec B106
        except OSError as error:
            raise NotReady(f"can't use the TLS certificate {settings.tls_cert}: {error.strerror}") from error
    return context


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


def ask(host: str, port: int, timeout: float, tls: ssl.SSLContext | None = None, uds: Path | None = None) -> str:
    """Ask a service whether every model is ready, and return its address: host:port or the path of its Unix socket.

    host, port: the address that the service listens on. timeout: in seconds, for each step of the exchange.
    tls: the client's TLS context; None without TLS. uds: the path of the Unix socket that the service listens on.
    Raises `NotReady` with the reason if the service is not ready, does not answer, or is not an HTTP server.
    """
    host = _LOOPBACK.get(host, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    connection: http.client.HTTPConnection
    if uds is not None:
        address = str(uds)
        connection = _UnixConnection(uds, timeout, tls)
    elif not port:
        raise NotReady("port 0 means any free port: set the port that the service listens on")
    elif tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except TimeoutError as error:
        raise NotReady(f"{address} has not answered within {timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        raise NotReady(f"{address} does not answer: {getattr(error, 'strerror', None) or error}") from error
    except http.client.HTTPException as error:
        raise NotReady(f"{address} does not answer in HTTP") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotReady(f"{address} is not ready: it answers {status}")
    return address
