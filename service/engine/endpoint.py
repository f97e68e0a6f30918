"""One model behind one protocol: bytes -> rows -> batcher -> bytes, without a task or a coroutine on the way.

It knows no socket and no framework: it is handed headers and a body, and calls back with a reply. What would hold the
event loop for long goes to a pool of threads: large bodies, and whatever is to be inflated or compressed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from foldserve.service.engine.batcher import Batcher, Entry
from foldserve.service.errors import DeadlinePassed, InvalidInput, QueueFull, RequestError
from foldserve.service.metrics import Metrics, Requests
from foldserve.service.protocols import content
from foldserve.service.protocols.reply import Headers, Reply, failure, refusal
from foldserve.service.protocols.rows import DecodedRequest, Rows, SlowBody

log = logging.getLogger("foldserve")

TIMEOUT = b"x-request-timeout-ms"
# More takes longer to read than anybody else's request should wait.
_LARGE = 2**20
# More is read here only if the codec has a quick way with it.
_MEDIUM = 2**15
_LARGE_ANSWER = 2**16
_WAITING_PER_THREAD = 8


class Codec(Protocol):
    """What a protocol does with bytes."""

    def decode(self, headers: Headers, body: bytes, *, fast_only: bool = False) -> DecodedRequest:
        """Read one request, or raise `RequestError`; with `fast_only`, `SlowBody` where it would."""


class Pool:
    """A few threads for what takes long. Few wait for them: who finds it full is refused at once."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "body")
        self._room = threading.Semaphore(threads * _WAITING_PER_THREAD)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Run `work` there; on the event loop. Raises `QueueFull`."""
        if not self._room.acquire(blocking=False):
            raise QueueFull("too many large bodies wait to be read", retry_after=1)
        running = self._executor.submit(work, *arguments)
        # Of the thread's own future: the event loop's is done as soon as it is cancelled.
        running.add_done_callback(lambda _: self._room.release())
        return asyncio.wrap_future(running)


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for: bytes of body once inflated, and seconds until its rows run."""

    max_body: int
    timeout: float
    compression: bool


class Endpoint:
    """Answers requests for one model in one protocol."""

    def __init__(
        self,
        codec: Codec,
        batcher: Batcher,
        limits: RequestLimits,
        pool: Pool,
        metrics: Metrics | None,
        requests: Requests | None,
    ) -> None:
        self.codec = codec
        self.batcher = batcher
        self.limits = limits
        self.pool = pool
        self.metrics = metrics
        self.requests = requests

    def start(self, headers: Headers, body: bytes, done: Callable[[Reply], None]) -> Exchange:
        """Answer through `done`, once, later or before this returns; on the event loop.

        To cancel the exchange is to leave.
        """
        exchange = Exchange(self, headers, done)
        exchange.start(body)
        return exchange

    async def answer(self, headers: Headers, body: bytes) -> Reply:
        """Answer for whoever can wait."""
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def deliver(made: Reply) -> None:
            if not reply.done():  # it may be cancelled, and the task that waits for it not have had its turn yet
                reply.set_result(made)

        exchange = self.start(headers, body, deliver)
        try:
            return await reply
        finally:
            exchange.cancel()


class Exchange:
    """One request on its way through an endpoint."""

    __slots__ = ("_arrived", "_call", "_done", "_endpoint", "_headers", "_open", "_step")

    def __init__(self, endpoint: Endpoint, headers: Headers, done: Callable[[Reply], None]) -> None:
        self._endpoint = endpoint
        self._headers = headers
        self._done = done
        self._arrived = time.monotonic()
        self._call: DecodedRequest | None = None
        self._step: Entry | asyncio.Future[Any] | None = None  # what it waits for
        self._open = True
        if endpoint.requests is not None:
            endpoint.requests.in_flight += 1

    def start(self, body: bytes) -> None:
        """Read the request here, or in the pool when that takes long."""
        try:
            if len(body) <= _LARGE and b"content-encoding" not in self._headers:
                try:
                    self._submit(self._endpoint.codec.decode(self._headers, body, fast_only=len(body) > _MEDIUM))
                except SlowBody:
                    pass
                else:
                    return
            self._later(self._read, body, then=self._submit)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client gets an answer)
            self._refuse(error)

    def cancel(self) -> None:
        """Leave: nobody wants the answer any more. After the answer it does nothing."""
        if self._open:
            self._close()
            if self._step is not None:
                self._step.cancel()

    def _read(self, body: bytes) -> DecodedRequest:
        if time.monotonic() >= self._arrived + self._timeout(None):
            raise DeadlinePassed("the deadline passed before the request could be read")
        body = content.inflated(self._headers, body, self._endpoint.limits.max_body)
        return self._endpoint.codec.decode(self._headers, body)

    def _submit(self, call: DecodedRequest) -> None:
        deadline = self._arrived + self._timeout(call.timeout)
        self._call = call
        self._step = self._endpoint.batcher.submit(call.rows, deadline, self._computed)

    def _timeout(self, asked: float | None) -> float:
        """Give the seconds that the request has: what the client asks for, here or in the header, or the limit."""
        limit = self._endpoint.limits.timeout
        if (header := self._headers.get(TIMEOUT)) is not None:
            if not re.fullmatch(rb"[0-9]{1,9}", header.strip()):
                raise InvalidInput("X-Request-Timeout-Ms is not a number of milliseconds")
            limit = min(limit, int(header) / 1e3)
        return limit if asked is None else min(limit, asked)

    def _computed(self, outputs: Rows | RequestError) -> None:
        if isinstance(outputs, RequestError):
            self._refuse(outputs)
            return
        try:
            reply = self._call.encode(outputs)  # type: ignore[union-attr]  # submitted, so it is set
            if self._endpoint.limits.compression and b"accept-encoding" in self._headers:
                if len(reply.body) <= _LARGE_ANSWER:
                    reply = content.compressed(self._headers, reply)
                else:
                    with suppress(QueueFull):  # then it goes as it is
                        self._later(content.compressed, self._headers, reply, then=self._end)
                        return
        except Exception as error:  # noqa: BLE001
            self._refuse(error)
        else:
            self._end(reply)

    def _later(self, work: Callable[..., Any], *arguments: Any, then: Callable[[Any], None]) -> None:
        def worked(step: asyncio.Future[Any]) -> None:
            if self._open and not step.cancelled():
                try:
                    then(step.result())
                except Exception as error:  # noqa: BLE001
                    self._refuse(error)

        step = self._endpoint.pool.submit(work, *arguments)
        step.add_done_callback(worked)
        self._step = step

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, RequestError):
            if self._endpoint.metrics is not None:
                self._endpoint.metrics.reject(error)
            self._call = None
            self._end(refusal(error))
        else:
            log.error("internal error", exc_info=error)
            self._end(failure(500, "internal error"))

    def _end(self, reply: Reply) -> None:
        if self._open:
            self._close(reply.status)
            self._done(reply)

    def _close(self, status: int = 499) -> None:
        """Count it; a client that left has no status, and 499 is what proxies log for it."""
        self._open = False
        requests = self._endpoint.requests
        if requests is not None:
            requests.in_flight -= 1
            call = self._call if status == 200 else None
            if call is not None and call.unseen:
                requests.unseen(call.unseen)
            requests.ended(status, 0 if call is None else len(call.rows), time.monotonic() - self._arrived)
