"""An endpoint is one model in one protocol. An `Endpoint` starts an `Exchange` for each request.

This module does not depend on sockets or on a framework.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from dataclasses import replace
from typing import NoReturn

from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.exchange import Codec, Exchange, OnReply, Resources
from foldserve.service.engine.observed import ErrorListener, LastRun, ObservedExchange, UnrecordedExchange
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.reply import Headers, Reply
from foldserve.service.telemetry.record import Record

_REQUEST_ID = b"x-request-id"
_MAX_QUERIES = 64  # the largest number of queries whose endpoints are cached


class Endpoint:
    """Answers requests for one model in one protocol.

    last_run: the observer of the batcher's runs; None if requests are not observed.
    """

    def __init__(self, resources: Resources, last_run: LastRun | None = None) -> None:
        self._resources = resources
        self._by_query: dict[bytes, Endpoint] = {}
        self._last_run = last_run

    @property
    def answering(self) -> Endpoint:
        """The endpoint that answers most requests: the endpoint itself, unless two versions share the requests."""
        return self

    @property
    def max_body(self) -> int:
        """The largest number of bytes of a body, before and after decompression."""
        return self._resources.limits.max_body

    @property
    def memory(self) -> BodyMemory:
        """Counts the memory that the bodies of all requests take."""
        return self._resources.memory

    @property
    def batcher(self) -> Batcher:
        """The batcher, which owns the queue of rows."""
        return self._resources.batcher

    def for_query(self, query: bytes) -> Endpoint:
        """Return the endpoint that answers requests whose URL has this query.

        This method is called only for a request with a query, so a request without a query takes no extra time. If the
        query is invalid, the returned endpoint refuses each request, and counts the refusals.
        """
        if not query:
            return self
        found = self._by_query.get(query)
        if found is None:
            if len(self._by_query) >= _MAX_QUERIES:
                self._by_query.clear()
            try:
                codec = self._resources.codec.for_query(query)
            except InvalidInput as error:
                codec = _RefusingCodec(str(error))
            found = self._by_query[query] = Endpoint(replace(self._resources, codec=codec), self._last_run)
        return found

    @property
    def in_flight(self) -> int:
        """The number of requests that have no reply yet."""
        return self._resources.requests.in_flight

    def start(self, headers: Headers, body: bytes | bytearray, on_reply: OnReply) -> Exchange:
        """Start an exchange. Call this method only on the event loop.

        on_reply: a function that is called once with the reply. `on_reply` may be called before this method returns.
        After `Exchange.cancel`, `on_reply` is not called.
        """
        exchange = Exchange(self._resources, headers, on_reply)
        exchange.start(body)
        return exchange

    def start_observed(self, headers: Headers, body: bytes | bytearray, on_reply: OnReply, record: Record) -> Exchange:
        """Do the same as `start`, but write the steps of the exchange into `record`."""
        exchange = ObservedExchange(self._resources, headers, on_reply, record, self._last_run)
        exchange.start(body)
        return exchange

    def start_unrecorded(
        self, headers: Headers, body: bytes | bytearray, on_reply: OnReply, listener: ErrorListener
    ) -> Exchange:
        """Do the same as `start`, but pass an error of the exchange to `listener`."""
        exchange = UnrecordedExchange(self._resources, headers, on_reply)
        exchange.listener = listener
        exchange.start(body)
        return exchange

    async def answer(self, headers: Headers, body: bytes | bytearray, record: Record | None = None) -> Reply:
        """Return the reply to one request. If this coroutine is cancelled, the exchange is cancelled too."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def deliver(reply: Reply) -> None:
            if not future.done():  # the future may be cancelled before the task that awaits the future runs again
                future.set_result(reply)

        if record is None:
            exchange = self.start(headers, body, deliver)
        else:
            exchange = self.start_observed(headers, body, deliver, record)
        del body  # the exchange frees the body once the body is decoded
        try:
            return await future
        finally:
            exchange.cancel()


class SplitEndpoint(Endpoint):
    """Shares the requests of one path between two versions of a model.

    share: the share of requests that `canary` answers. The id of a request decides which version answers it. If a
    client sends a request again with the same id, the same version answers, whichever worker gets the request. If a
    request has no id, the version is chosen at random.
    """

    def __init__(self, main: Endpoint, canary: Endpoint, share: float) -> None:
        super().__init__(main._resources)
        self._main = main
        self._canary = canary
        self._share = share

    @property
    def answering(self) -> Endpoint:
        """The endpoint that answers most requests."""
        return self._main

    def for_query(self, query: bytes) -> Endpoint:
        """Return the endpoint that answers requests whose URL has this query."""
        if not query:
            return self
        return SplitEndpoint(self._main.for_query(query), self._canary.for_query(query), self._share)

    def start(self, headers: Headers, body: bytes | bytearray, on_reply: OnReply) -> Exchange:
        """Choose one of the two versions for this request, and start an exchange with this version."""
        return self._choose(headers).start(headers, body, on_reply)

    def start_observed(self, headers: Headers, body: bytes | bytearray, on_reply: OnReply, record: Record) -> Exchange:
        """Choose one of the two versions for this request, and start an exchange with this version."""
        return self._choose(headers).start_observed(headers, body, on_reply, record)

    def start_unrecorded(
        self, headers: Headers, body: bytes | bytearray, on_reply: OnReply, listener: ErrorListener
    ) -> Exchange:
        """Choose one of the two versions for this request, and start an exchange with this version."""
        return self._choose(headers).start_unrecorded(headers, body, on_reply, listener)

    def _choose(self, headers: Headers) -> Endpoint:
        request_id = headers.get(_REQUEST_ID)
        place = random.random() if request_id is None else zlib.crc32(request_id.strip()) / 2**32  # noqa: S311 # nosec B311
        return self._canary if place < self._share else self._main


class _RefusingCodec:
    """Refuses requests whose URL has a wrong query."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def decode(self, *_: object, **__: object) -> NoReturn:
        raise InvalidInput(self._reason)

    def for_query(self, _: bytes, /) -> Codec:
        return self
