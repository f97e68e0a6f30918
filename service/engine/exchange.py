"""Handles one request from its body to its reply: decoding, the call of the batcher, and encoding.

An exchange uses no asyncio task and no coroutine. This module uses a codec, a batcher and a pool of threads. This
module does not depend on sockets or on a framework. The pool does the work that would block the event loop for too
long: reading large or compressed bodies, and compressing large responses.

    start -> decode -> batcher -> encode -> compress -> on_reply
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from foldserve.service.arrays import Outputs
from foldserve.service.engine.admission import Admission
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.entry import Entry
from foldserve.service.engine.pool import Pool
from foldserve.service.errors import DeadlinePassed, InvalidInput, QueueFull, RequestError, TooLarge
from foldserve.service.metrics import Metrics, RequestMetrics
from foldserve.service.protocols import content
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.reply import Headers, Reply, failure, refusal
from foldserve.service.protocols.request import DecodedRequest, SlowBody
from foldserve.service.quality.predictions import Predictions

log = logging.getLogger("foldserve")

OnReply = Callable[[Reply], None]

_TIMEOUT_HEADER = b"x-request-timeout-ms"
_PRIORITY_HEADER = b"x-request-priority"
_ID_HEADER = b"x-request-id"
# If a body has more bytes than this number, a thread of the pool reads it, so that other requests do not wait for it.
_LARGE_BODY = 2**20
# If a body has more bytes than this number, the event loop reads it only if the codec has a fast path for it.
_MEDIUM_BODY = 2**15
# If a response has more bytes than this number, a thread of the pool compresses it.
_LARGE_RESPONSE = 2**16
# Proxies log this status if the client disconnects before the response.
CLIENT_DISCONNECTED = 499


TOO_MANY = QueueFull("the server has more requests than it can answer in time", 1)


@cache
def _too_many(retry_after: int) -> Reply:
    return refusal(QueueFull(str(TOO_MANY), retry_after))


class _LargeBody(Exception):  # noqa: N818
    """Raised if a body is too large for the event loop."""


class Codec(Protocol):
    """Decodes the requests of one protocol for one model."""

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request. Raises `RequestError`.

        If `fast_only` is true and the codec has no fast path for the body, raises `SlowBody`.
        """

    def for_query(self, query: bytes, /) -> Codec:
        """Return the codec for requests whose URL has this query. Raises `InvalidInput` for a wrong query."""


@dataclass(frozen=True)
class RequestLimits:
    """The limits of each request. timeout: the number of seconds within which the run of a request must begin.

    max_body: the largest number of bytes of a body after decompression. compression: whether a response may be
    compressed.
    """

    max_body: int
    timeout: float
    compression: bool


@dataclass(frozen=True, slots=True)
class Resources:
    """The objects that all exchanges of one endpoint share.

    labels: the names of the model, the version and the protocol. predictions: an object that remembers outputs for
    labels that become known later; None if outputs are not remembered.
    """

    codec: Codec
    admission: Admission
    batcher: Batcher
    limits: RequestLimits
    pool: Pool
    memory: BodyMemory
    metrics: Metrics
    requests: RequestMetrics
    labels: tuple[str, str, str]
    predictions: Predictions | None = None


class Exchange:
    """One request and its reply. Call all methods on the same event loop.

    on_reply: a function that is called once with the reply, unless the exchange is cancelled before the reply.
    """

    __slots__ = ("_arrived", "_body", "_headers", "_high", "_on_reply", "_open", "_pending", "_request", "_resources")

    def __init__(self, resources: Resources, headers: Headers, on_reply: OnReply) -> None:
        self._resources = resources
        self._headers = headers
        self._on_reply = on_reply
        self._arrived = time.monotonic()
        self._body: bytes | bytearray = b""  # the body, while the exchange waits for admission
        self._high = False  # whether the request has high priority
        self._request: DecodedRequest | None = None
        # the entry or the future that the exchange waits for
        self._pending: Entry | asyncio.Future[Any] | None = None
        self._open = True
        resources.requests.in_flight += 1

    def start(self, body: bytes | bytearray) -> None:
        """Decode the body now, or later if the process has much work.

        Reply with a 503 if the process has too much work.
        """
        resources = self._resources
        admission, batcher = resources.admission, resources.batcher
        try:
            if _PRIORITY_HEADER in self._headers:
                self._high = self._priority()
            filled = batcher.filled
            if filled or batcher.running:
                batcher.check_wait(self._timeout(None), high=self._high)
            if admission.begins_now(self._arrived) and not filled:
                self._decode_here(body)
            elif wait := admission.wait(self, len(body), self._arrived, patience=self._timeout(None), high=self._high):
                self._refuse(wait)
            else:
                self._body = body
        except Exception as error:  # noqa: BLE001 (the client gets a response to any error)
            self._fail(error)

    def _refuse(self, retry_after: int) -> None:
        """Refuse the request, because the process has too much work."""
        self._resources.metrics.count_rejected(TOO_MANY)
        self._finish(_too_many(retry_after))

    def begin(self) -> bool:
        """Decode the body after the wait for admission.

        Returns whether other exchanges may begin in this turn of the event loop.
        """
        body, self._body = self._body, b""
        if self._open:
            try:
                self._check_deadline()
                batcher = self._resources.batcher
                if batcher.running:  # other requests of this turn may have filled the queue
                    batcher.check_wait(self._timeout(None), high=self._high)
                self._decode_here(body)
            except Exception as error:  # noqa: BLE001
                self._fail(error)
        return not self._resources.batcher.filled

    def _decode_here(self, body: bytes | bytearray) -> None:
        """Decode the body on the event loop, or in the pool if decoding takes long.

        This method first tries to decompress the body on the event loop, so that a small body does not wait in the pool
        behind large bodies.
        """
        request: DecodedRequest | None
        plain: bytes | bytearray = body
        try:
            if b"content-encoding" in self._headers:
                plain = self._inflate_here(body)
            elif len(body) > _LARGE_BODY:
                raise _LargeBody
            request = self._resources.codec.decode(self._headers, plain, fast_only=len(plain) > _MEDIUM_BODY)
        except (SlowBody, _LargeBody):
            request = None
        if request is None:
            self._run_in_pool(self._decode, body, then=self._submit)
        else:
            self._submit(request)

    def _inflate_here(self, body: bytes | bytearray) -> bytes | bytearray:
        """Decompress a body on the event loop. Raises `_LargeBody` as soon as the decompressed body gets too large."""
        if len(body) > _MEDIUM_BODY:
            raise _LargeBody
        try:
            limit = min(_MEDIUM_BODY, self._resources.limits.max_body)
            return content.inflated(self._headers, body, limit, self._resources.memory)
        except TooLarge:
            raise _LargeBody from None

    def cancel(self) -> None:
        """Drop the request, because its client has disconnected. After the reply, this method does nothing."""
        if self._open:
            self._close(CLIENT_DISCONNECTED)
            self._body = b""
            if self._pending is not None:
                self._pending.cancel()

    def _decode(self, body: bytes | bytearray) -> DecodedRequest | RequestError:
        """Decode the body on a thread of the pool. Returns a `RequestError` instead of raising it."""
        resources = self._resources
        try:
            self._check_deadline()
            body = content.inflated(self._headers, body, resources.limits.max_body, resources.memory)
            return resources.codec.decode(self._headers, body)
        except RequestError as error:
            # The traceback refers to frames that hold the body, and one of these frames will refer to this error. The
            # traceback is deleted, because such a cycle of references would keep the body in memory.
            error.__traceback__ = error.__context__ = None
            return error

    def _submit(self, request: DecodedRequest | RequestError) -> None:
        if isinstance(request, RequestError):
            self._fail(request)
            return
        deadline = self._arrived + self._timeout(request.timeout)
        self._request = request
        self._pending = self._resources.batcher.submit(request.rows, deadline, self._encode, high=self._high)

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._arrived + self._timeout(None):
            raise DeadlinePassed("the deadline passed before the request could be read")

    def _priority(self) -> bool:
        """Return whether the client asks for a high priority."""
        value = self._headers[_PRIORITY_HEADER].strip().lower()
        if value not in (b"high", b"normal"):
            raise InvalidInput("X-Request-Priority is neither high nor normal")
        return value == b"high"

    def _timeout(self, requested: float | None) -> float:
        """Return the seconds until the deadline: the smallest of the server's limit, the value of the header, and
        `requested`.
        """
        limit = self._resources.limits.timeout
        if (header := self._headers.get(_TIMEOUT_HEADER)) is not None:
            if not re.fullmatch(rb"[0-9]{1,9}", header.strip()):
                raise InvalidInput("X-Request-Timeout-Ms is not a number of milliseconds")
            limit = min(limit, int(header) / 1e3)
        return limit if requested is None else min(limit, requested)

    def _encode(self, outputs: Outputs | RequestError) -> None:
        if isinstance(outputs, RequestError):
            self._fail(outputs)
            return
        if (predictions := self._resources.predictions) is not None:
            self._remember(predictions, outputs)
        request: DecodedRequest = self._request  # type: ignore[assignment]  # set by _submit
        try:
            if request.encodes_slowly:
                with suppress(QueueFull):  # if no thread is free, the event loop encodes the answer
                    self._run_in_pool(request.encode, outputs, then=self._compress)
                    return
            self._compress(request.encode(outputs))
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _remember(self, predictions: Predictions, outputs: Outputs) -> None:
        """If the client has sent a request id, remember the outputs under this id."""
        if (request_id := self._headers.get(_ID_HEADER)) is not None:
            predictions.add(request_id, outputs)

    def _compress(self, reply: Reply) -> None:
        """Compress the reply if the client accepts compression, and send the reply."""
        try:
            if self._resources.limits.compression and b"accept-encoding" in self._headers:
                if len(reply.body) <= _LARGE_RESPONSE:
                    reply = content.compressed(self._headers, reply)
                else:
                    with suppress(QueueFull):  # if no thread is free, the response is sent uncompressed
                        self._run_in_pool(content.compressed, self._headers, reply, then=self._finish)
                        return
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        else:
            self._finish(reply)

    def _run_in_pool(self, function: Callable[..., Any], *arguments: Any, then: Callable[[Any], None]) -> None:
        def on_done(result: asyncio.Future[Any]) -> None:
            if self._open and not result.cancelled():
                try:
                    then(result.result())
                except Exception as error:  # noqa: BLE001
                    self._fail(error)

        result = self._resources.pool.submit(function, *arguments)
        result.add_done_callback(on_done)
        self._pending = result

    def _fail(self, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._resources.metrics.count_rejected(error)
            self._finish(refusal(error))
        else:
            log.error("internal error", exc_info=error)
            self._finish(failure(500, "internal error"))

    def _finish(self, reply: Reply) -> None:
        if self._open:
            self._close(reply.status)
            self._on_reply(reply)

    def _close(self, status: int) -> None:
        """Count the request in the metrics."""
        self._open = False
        requests = self._resources.requests
        requests.in_flight -= 1
        answered = self._request if status == 200 else None
        if answered is not None:
            requests.observe(answered.rows)
            if answered.counts:
                requests.count_unusual(answered.counts)
        requests.record(status, 0 if answered is None else len(answered.rows), time.monotonic() - self._arrived)
