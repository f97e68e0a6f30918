"""The objects that all connections of one process share.

This module does not use sockets, and has no state of a single request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from foldserve.service.access.guard import Guard
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.errors import RequestError
from foldserve.service.http.head import Head, Heads
from foldserve.service.http.security import EXPOSED_HEADERS, NO_SNIFF
from foldserve.service.http.shares import Share
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.reply import Headers, Reply
from foldserve.service.telemetry.record import Observer

_MAX_CACHED = 256


@dataclass(frozen=True)
class Limits:
    """The limits of each connection.

    max_head, max_body: the largest head and the largest body, in bytes. request_timeout: the largest number of seconds
    between the first and the last byte of a request. idle_timeout: a connection closes after this number of seconds if
    it has no request, or if its client does not read.
    """

    max_head: int
    max_body: int
    request_timeout: float
    idle_timeout: float


class ConnectionContext:
    """The objects that every connection uses.

    endpoints: a mapping from the path of a request, without percent-encoding, to the endpoint. Each request looks up
    its path, so the mapping may change at any time. memory: counts the bytes of the bodies of all connections.
    count_rejected: a function that is called with the error of each request that a connection refuses. share: counts
    the connections of this process. observer: gets the record of each request; None if requests have no records. guard:
    checks the API key of each request for an endpoint; None if requests need no key. check_head: a function that is
    called with the headers of a request, and raises an error to refuse the request. cors: whether web pages of other
    origins may read the responses.
    """

    def __init__(
        self,
        endpoints: Mapping[bytes, Endpoint],
        limits: Limits,
        memory: BodyMemory,
        count_rejected: Callable[[RequestError], object],
        share: Share,
        *,
        observer: Observer | None = None,
        guard: Guard | None = None,
        check_head: Callable[[Headers], object] = lambda _: None,
        cors: bool = False,
    ) -> None:
        self._endpoints = endpoints
        self.limits = limits
        self.memory = memory
        self.count_rejected = count_rejected
        self.observer = observer
        self.heads = Heads(limits.max_head, check_head)
        self.guard = guard
        self.cors = cors
        self.share = share
        self._response_heads: dict[tuple[object, ...], bytes] = {}
        self._date = _date()

    def tick(self) -> None:
        """Set the date in the head of responses. Call this method once a second."""
        self._date = _date()
        self._response_heads.clear()

    def find_endpoint(self, head: Head) -> Endpoint | None:
        """Return the endpoint for a request, or None if the app must respond to the request."""
        if head.method != b"POST":
            return None
        endpoint = self._endpoints.get(head.url)
        if endpoint is None and b"?" in head.url:
            path, _, query = head.url.partition(b"?")
            endpoint = self._endpoints.get(path)
            return endpoint and endpoint.for_query(query)
        return endpoint

    def encode(self, reply: Reply, *, close: bool, head: Head | None = None, request_id: bytes = b"") -> bytes:
        """Return the bytes of a response.

        close: whether to send `Connection: close`. head: the head of the request. request_id: the value of
        X-Request-Id; empty if the response has no such header.
        """
        if self.cors and head is not None and (origin := head.headers.get(b"origin")) is not None:
            headers = (b"access-control-allow-origin", origin), EXPOSED_HEADERS, (b"vary", b"origin")
            reply = Reply(reply.status, reply.headers + headers, reply.body)
        key = (reply.status, reply.headers, close)
        start = self._response_heads.get(key)
        if start is None:
            start = self._response_head(reply, close=close)
            if len(self._response_heads) < _MAX_CACHED:
                self._response_heads[key] = start
        if request_id:
            return b"%b%d\r\nx-request-id: %b\r\n\r\n%b" % (start, len(reply.body), request_id, reply.body)
        return b"%b%d\r\n\r\n%b" % (start, len(reply.body), reply.body)

    def _response_head(self, reply: Reply, *, close: bool) -> bytes:
        lines = [b"HTTP/1.1 %d %b" % (reply.status, HTTPStatus(reply.status).phrase.encode())]
        lines += [b"%b: %b" % header for header in ((b"date", self._date), NO_SNIFF, *reply.headers)]
        if close:
            lines.append(b"connection: close")
        return b"\r\n".join((*lines, b"content-length: "))


def _date() -> bytes:
    return formatdate(time.time(), usegmt=True).encode()
