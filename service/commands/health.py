"""`foldserve health`: asks a running service whether it is ready.

A container image can use `foldserve health` for its health check, so that the image does not need curl.

This module sends a GET to one path of the Open Inference Protocol, and does not depend on the modules of the server.
"""

from __future__ import annotations

import http.client
import ssl

from foldserve.service.commands.http_client import Address, send
from foldserve.service.errors import NotReady
from foldserve.service.settings import Settings


def run(settings: Settings) -> None:
    """Print the address of the service if it is ready.

    Raises `NotReady` if the service is not ready.
    """
    host, port, uds = settings.host, settings.port, settings.uds
    if settings.tls_client_ca is not None and settings.admin_port is not None:
        uds = None
        host, port = settings.admin_host, settings.admin_port  # a loopback port needs no client certificate
    print(f"ready: {ask(Address(host, port, _tls(settings), uds))}")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Create the TLS context of a client that trusts any certificate.

    It is safe to trust any certificate here, because the client sends no secret and the server is on this machine. If
    the server requires a certificate from clients, this client uses the server's certificate.
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


def ask(address: Address) -> str:
    """Ask a service whether every model is ready, and return its address: host:port or the path of its Unix socket.

    Raises `NotReady` with the reason if the service is not ready, does not answer, or is not an HTTP server.
    """
    status = send(address, "GET", "/v2/health/ready").status
    if status != http.client.OK:
        raise NotReady(f"{address} is not ready: it answers {status}")
    return str(address)
