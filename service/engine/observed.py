"""Exchanges that write their steps into the record of the request. `LastRun` keeps the times of a batcher's latest run.

If the access log and the traces are off, requests use `Exchange` itself, so that they take no extra time.
"""

from __future__ import annotations

import time
from typing import Protocol

from foldserve.service.arrays import Outputs
from foldserve.service.engine.entry import Entry
from foldserve.service.engine.exchange import TOO_MANY, Exchange, OnReply, Resources
from foldserve.service.errors import DeadlinePassed, RequestError
from foldserve.service.metrics import BatchObserver
from foldserve.service.protocols.reply import Headers
from foldserve.service.protocols.request import DecodedRequest
from foldserve.service.quality.predictions import Predictions
from foldserve.service.telemetry.record import Batch, Record, current_record


class LastRun:
    """Remembers the latest run of a batcher for the exchanges, and calls another observer.

    After a run, a batcher calls its observer before it calls the callbacks of the exchanges, so that each callback can
    read the times of its own run from this object. ran_from, ran_to: the times of the start and the end of the latest
    run, by `time.monotonic`. `LastRun` does very little work in each run, because in most runs no request has a record.
    """

    def __init__(self, observe: BatchObserver) -> None:
        self._observe = observe
        self._runs = 0
        self._rows = 0
        self._seconds = self.ran_to = 0.0

    def __call__(self, rows: int, seconds: float, waited: list[float]) -> None:
        """Remember a run. The arguments have the same meaning as in a `BatchObserver`."""
        self._runs += 1
        self.ran_to = time.monotonic()
        self._seconds = seconds
        self._rows = rows
        self._observe(rows, seconds, waited)

    @property
    def ran_from(self) -> float:
        """The time at which the latest run started."""
        return self.ran_to - self._seconds

    @property
    def batch(self) -> Batch:
        """The latest run. Two reads return equal objects, unless a new run ended between the reads."""
        return Batch(self, self._runs, self._rows)


class ErrorListener(Protocol):
    """Receives the errors of exchanges that have no record. request_id: the id of the current request."""

    request_id: bytes

    def note_error(self, exchange: UnrecordedExchange, error: Exception) -> Record:
        """Create the record of a request that fails.

        The exchange calls this method before the request gets its reply.
        """


class UnrecordedExchange(Exchange):
    """An exchange of a request that is recorded only if it fails. Set `listener` before calling `start`."""

    listener: ErrorListener

    __slots__ = ("listener",)

    def fill(self, record: Record) -> None:
        """Fill a record that was created after the failure of the request."""
        record.model, record.version, record.protocol = self._resources.labels
        record.began = self._arrived

    def _remember(self, predictions: Predictions, outputs: Outputs) -> None:
        predictions.add(self.listener.request_id, outputs)

    def _refuse(self, retry_after: int) -> None:
        self.listener.note_error(self, TOO_MANY)
        super()._refuse(retry_after)

    def _fail(self, error: Exception) -> None:
        token = current_record.set(self.listener.note_error(self, error))
        try:
            super()._fail(error)
        finally:
            current_record.reset(token)


class ObservedExchange(Exchange):
    """An exchange that fills the record of its request. run: the latest run of the batcher in `resources`."""

    __slots__ = ("_record", "_run")

    def __init__(
        self, resources: Resources, headers: Headers, on_reply: OnReply, record: Record, run: LastRun | None
    ) -> None:
        super().__init__(resources, headers, on_reply)
        self._record = record
        self._run = run
        record.model, record.version, record.protocol = resources.labels

    def _decode_here(self, body: bytes | bytearray) -> None:
        self._record.decoding = time.monotonic()
        super()._decode_here(body)

    def _submit(self, request: DecodedRequest | RequestError) -> None:
        record = self._record
        record.decoded = time.monotonic()
        if isinstance(request, DecodedRequest):
            record.rows = len(request.rows)
            record.note_identity(request.identity)
        super()._submit(request)

    def _encode(self, outputs: Outputs | RequestError) -> None:
        run = self._run
        if run is not None and not isinstance(outputs, DeadlinePassed):
            record, entry = self._record, self._pending
            # If the batcher has split an entry into several runs, `ran_from` is the start of the first run.
            first = getattr(entry, "began", None) if isinstance(entry, Entry) else None
            record.ran_from = run.ran_from if first is None else first
            record.ran_to = run.ran_to
            record.batch = run.batch
        super()._encode(outputs)

    def _remember(self, predictions: Predictions, outputs: Outputs) -> None:
        predictions.add(self._record.request_id, outputs)

    def _refuse(self, retry_after: int) -> None:
        self._record.note_error(TOO_MANY)
        super()._refuse(retry_after)

    def _fail(self, error: Exception) -> None:
        self._record.note_error(error)
        token = current_record.set(self._record)  # adds the request id to the log line of an unexpected error
        try:
            super()._fail(error)
        finally:
            current_record.reset(token)

    def _close(self, status: int) -> None:
        self._record.status = status
        self._record.ended = time.monotonic()
        super()._close(status)
