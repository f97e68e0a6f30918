"""Asks a running service whether it is ready: the health check of a container that has no curl.

It knows the address, one path of the Open Inference Protocol, and nothing of the server behind them.
"""

from __future__ import annotations

import http.client

from foldserve.service.errors import NotReady

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (where to ask one that listens everywhere)


def ask(host: str, port: int, timeout: float) -> str:
    """Return the address that answers, as host:port, when every model is ready.

    `host` and `port` are what the service listens on; `timeout` is in seconds, for each step of the exchange. Raises
    `NotReady`, with the reason, whatever answers instead, or when nothing does.
    """
    host = _ANY.get(host, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not port:
        raise NotReady("port 0 is a free one that nobody knows: set one")
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
