"""The record of one request: its identifiers, its model, its times and its outcome.

Each object that handles a request writes into the record of the request. When the response is complete,
`Observer.finish` passes the record to the sinks. This module does not depend on the format of a log or on
OpenTelemetry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

from foldserve.service.errors import RequestError
from foldserve.service.telemetry.rate import RateLimit
from foldserve.service.telemetry.trace_context import Headers, Parent, read_parent, safe_id

INTERNAL_ERROR = "internal_error"
_FIRST_ERROR = 400
# The sinks report the number of skipped requests after this number of seconds without a new record.
_REPORT_SECONDS = 1.0
_LAST_DIGITS = tuple(b"%02x" % number for number in range(256))


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of a model.

    runs: how many runs the batcher has done so far. rows: the number of rows of all requests in the run.
    """

    batcher: object
    runs: int
    rows: int


def _make_ids() -> Iterator[Iterator[bytes]]:
    """Yield blocks of 256 identifiers.

    All identifiers of a block share 56 random bits, because drawing random numbers takes time.
    """
    while True:
        yield map((b"%014x" % random.getrandbits(56)).__add__, _LAST_DIGITS)  # nosec B311


class Record:
    """One request and its response.

    All times come from `time.monotonic`. The time of a step is None if the request has not reached the step.

    request_id: the identifier from X-Request-Id, or a new identifier. body_id: the `id` in the body of a request of the
    Open Inference Protocol. method, url: from the request line; each is the text `-` if the request can't be read.
    client: the address of the client. secure: whether the connection uses TLS. model, version, protocol: empty if the
    request did not reach a model. began: the time when the whole request had arrived. If the app itself reads the body,
    `began` is the time when the head had arrived. decoding, decoded: the times when the decoding began and ended.
    ran_from, ran_to: the times when the run began and ended. ended: the time when the encoding ended. From `decoded` to
    `ran_from`, the rows wait in the queue. The encoding begins at `ran_to`. sinks: the sinks that get the record even
    if the request succeeds. rows: the number of rows; None if the number is not known. reason: the reason for an error,
    as one of the texts that the metric foldserve_rejected_total also uses.
    """

    # The default values of the attributes are class attributes, because assigning all of them for each request would
    # take longer than the rest of the constructor.
    model = version = protocol = body_id = ""
    rows: int | None = None
    status = 0
    reason = ""
    decoding: float | None = None
    decoded: float | None = None
    ran_from: float | None = None
    ran_to: float | None = None
    ended: float | None = None
    batch: Batch | None = None
    sinks: Sequence[Sink] = ()

    def __init__(
        self, method: bytes, url: bytes, headers: Headers, raw: bytes, request_id: bytes, client: str, *, secure: bool
    ) -> None:
        """Create the record of a request when the request begins.

        request_id: an identifier with only safe characters, or empty. raw: the bytes of the head of the request.
        """
        self.method = method
        self.url = url
        self.headers = headers
        self.client = client
        self.secure = secure
        self.span_id = random.getrandbits(64) or 1  # nosec B311
        self.request_id = request_id or b"%016x" % self.span_id
        self.began = time.monotonic()
        self._raw = raw

    @cached_property
    def parent(self) -> Parent | None:
        """The span of the client, as given in the header traceparent."""
        return read_parent(self.headers, self._raw)

    @cached_property
    def trace_id(self) -> int:
        """The trace identifier of the request: the identifier from the client, or a new identifier."""
        return self.parent.trace_id if self.parent else random.getrandbits(128) or 1  # nosec B311

    def note_identity(self, identity: str | None) -> None:
        """Store the identifier from the body of the request, if the identifier is safe."""
        if identity:
            self.body_id = safe_id(identity.encode("utf-8", "replace")).decode()

    def note_error(self, error: BaseException) -> None:
        """Store the reason for an error response."""
        self.reason = error.reason() if isinstance(error, RequestError) else INTERNAL_ERROR


# The record of the request that the current task or callback handles.
current_record: ContextVar[Record | None] = ContextVar("current_record", default=None)


def note_error(error: BaseException) -> None:
    """Store the reason for an error response in the current record, if there is a current record."""
    record = current_record.get()
    if record is not None:
        record.note_error(error)


class Sink(Protocol):
    """Receives finished records; for example, the access log is a sink.

    limit: limits how many records per second the sink gets. keeps_errors: whether the sink gets the record of every
    request that fails, even if more requests fail than `limit` allows.
    """

    limit: RateLimit
    keeps_errors: bool

    def add(self, record: Record) -> None:
        """Receive a finished record."""

    def skip(self, count: int) -> None:
        """Note that this sink does not get the records of `count` requests."""

    def report(self) -> None:
        """Report the number of skipped requests now, instead of waiting for the next record."""

    def close(self) -> None:
        """Send or write all records that wait. This call may block for some seconds."""


class Observer:
    """Decides which requests have a record, and passes each finished record to its sinks.

    While the server is busy, most requests have no record, because recording takes much of the time of a request. The
    observer tells the sinks how many requests had no record. Call all methods except `close` on the same event loop.

    next: before this time, the sinks take no records of successful requests, so a request that begins before this time
    needs a record only if it fails. skipped: the number of requests without a record since the last report to the
    sinks; the caller increases this number. make_id: a function that makes an identifier for a request that has no
    record.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self.next = 0.0
        self.skipped = 0
        self.make_id = chain.from_iterable(_make_ids()).__next__
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, record: Record) -> None:
        """Choose the sinks that get a new record."""
        record.sinks = [sink for sink in self._sinks if sink.limit.take(record.began)]
        self._set_next()

    def finish(self, record: Record, status: int) -> None:
        """Finish the record of a request with the status of its response."""
        record.status = status
        if record.ended is None:
            record.ended = time.monotonic()
        self._pass_skipped()
        for sink in self._sinks:
            if sink in record.sinks or (status >= _FIRST_ERROR and sink.keeps_errors):
                sink.add(record)
            else:
                sink.skip(1)
                self._report_later()
        self._set_next()

    def close(self) -> None:
        """Send or write all records that wait.

        Call this method once, after the last request. This method may block for some seconds.
        """
        self._pass_skipped()
        for sink in self._sinks:
            sink.close()

    def _set_next(self) -> None:
        self.next = min(sink.limit.next for sink in self._sinks)
        if self.next > time.monotonic():  # before the time `next`, successful requests get no record
            self._report_later()

    def _report_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._report_skipped)

    def _pass_skipped(self) -> None:
        skipped, self.skipped = self.skipped, 0
        if skipped:
            for sink in self._sinks:
                sink.skip(skipped)

    def _report_skipped(self) -> None:
        """Report the skipped requests. If more requests may be skipped, schedule another report."""
        self._timer = None
        if self.skipped or self.next > time.monotonic():
            self._report_later()
        self._pass_skipped()
        for sink in self._sinks:
            sink.report()
