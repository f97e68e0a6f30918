"""Checks the Host and Origin headers of a request.

The Host and Origin headers show whether a web page of another site has sent the request. A browser lets any web page
send requests to a server on localhost. The Origin header names the site of the page. A site can make its domain name
resolve to 127.0.0.1 (DNS rebinding). After DNS rebinding, the browser treats the site and this server as the same
origin. After DNS rebinding, only the Host header still shows the domain name of the site.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from foldserve.service.errors import ForbiddenOrigin, UnknownHost

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_PORT = re.compile(rb":[0-9]*\Z")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def is_loopback(address: str) -> bool:
    """Return whether the IP address `address` can be reached only from this machine."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


class HostCheck:
    """Refuses requests from web pages that must not use this server.

    names: the host names that are accepted in the Host header, in addition to localhost and `host`. The name `*` allows
    every host. If `names` is empty, a server on a loopback address accepts only localhost and `host`, and any other
    server accepts every host. host: the address in the settings of the server. address: the IP address on which the
    server listens. origins: origins of other sites whose pages may use this server, such as `https://app.example`; `*`
    allows all.
    """

    def __init__(self, names: Iterable[str], host: str, address: str, origins: Iterable[str] = ()) -> None:
        given = {_without_port(name.lower().encode()) for name in names}
        own = {name.encode() for name in (*_LOOPBACK_NAMES, f"[{host}]".lower() if ":" in host else host.lower())}
        any_host = b"*" in given or not (given or is_loopback(address))
        self._hosts = None if any_host else given | own
        self._origins = {origin.lower().encode() for origin in origins}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise `UnknownHost` or `ForbiddenOrigin`. headers: the headers of the request, with names in lower case."""
        host = headers.get(b"host")
        if self._hosts is not None and host is not None and _without_port(host.lower()).rstrip(b".") not in self._hosts:
            raise UnknownHost("this server does not answer for this Host; --allowed-hosts can add it")
        origin = headers.get(b"origin")
        if origin is not None and not self._allows(origin.lower(), host):
            raise ForbiddenOrigin("pages of this Origin may not use this server; --cors-origins can add it")

    def _allows(self, origin: bytes, host: bytes | None) -> bool:
        if b"*" in self._origins or origin in self._origins:
            return True
        # The URL schemes are not compared: if a proxy handles TLS, the page uses https, but this connection uses http.
        scheme, separator, authority = origin.partition(b"://")
        default = _DEFAULT_PORTS.get(scheme, b"")
        same = host is not None and authority.removesuffix(default) == host.lower().removesuffix(default)
        return bool(separator) and same


def _without_port(host: bytes) -> bytes:
    return _PORT.sub(b"", host)
