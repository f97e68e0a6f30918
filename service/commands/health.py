"""`foldserve health`: asks a running service whether it is ready. A container needs no curl for its health check.

It knows an address and one path of the Open Inference Protocol, and nothing of the server behind them.
"""

from __future__ import annotations

import http.client

from foldserve.service.errors import NotReady

# The address to ask where the service listens on all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def run(host: str, port: int) -> None:
    """Print the address of the service if it is ready. Raises `NotReady` if it is not."""
    print(f"ready: {ask(host, port, timeout=3)}")


def ask(host: str, port: int, timeout: float) -> str:
    """Ask a service whether every model is ready, and return its address as host:port.

    host, port: the address that the service listens on. timeout: in seconds, for each step of the exchange.
    Raises `NotReady` with the reason if it is not ready, does not answer, or is not an HTTP server.
    """
    host = _LOOPBACK.get(host, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not port:
        raise NotReady("port 0 means any free port: set the port that the service listens on")
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
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
