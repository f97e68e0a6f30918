"""A connection whose requests have records. An observer gets each record when the response is complete.

While the server is busy, only some predictions get a record when they begin. If a prediction without a record fails, a
record is created when the prediction ends.

If the server has no observer, each client gets an ordinary `Connection`, so its requests take no extra time. This
module does not know what the records are used for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import CLIENT_DISCONNECTED
from foldserve.service.engine.observed import UnrecordedExchange
from foldserve.service.errors import RequestError
from foldserve.service.http.connection import Connection
from foldserve.service.http.context import ConnectionContext
from foldserve.service.http.head import Head
from foldserve.service.http.phase import APP_BODY, BODY, RESPONSE
from foldserve.service.protocols.reply import STATUS, Reply
from foldserve.service.telemetry.record import Observer, Record, current_record


class ObservedConnection(Connection):
    """A connection that keeps a record of its current request. observer: the observer of the `ConnectionContext`."""

    def __init__(
        self,
        context: ConnectionContext,
        create_inner: Callable[[], asyncio.Protocol],
        connections: set[Connection],
        observer: Observer,
    ) -> None:
        super().__init__(context, create_inner, connections)
        self._observer = observer
        self._record: Record | None = None
        self._client, self._secure = "", False
        self.request_id = b""  # the id of the current request, if the request has no record

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        self._secure = transport.get_extra_info("sslcontext") is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._record_unanswered()
        super().connection_lost(exc)
        self._finish_record(CLIENT_DISCONNECTED)

    def _new_record(self, head: Head | None) -> Record:
        """Create the record of a request. head: the head of the request; None if the head can't be read."""
        if head is None:
            record = Record(b"-", b"-", {}, b"", b"", self._client, secure=self._secure)
        else:
            of_head = (head.method, head.url, head.headers, head.raw, head.request_id)
            record = Record(*of_head, self._client, secure=self._secure)
        self._record = record
        return record

    def _begin_record(self, head: Head) -> Record:
        record = self._new_record(head)
        self._observer.begin(record)
        return record

    def _finish_record(self, status: int) -> None:
        record, self._record = self._record, None
        if record is not None:
            self._observer.finish(record, status)

    # --- a request for an endpoint ------------------------------------------------------------------------------------

    def _start(self, endpoint: Endpoint, head: Head, body: bytes | bytearray) -> None:
        self._phase, self._head = RESPONSE, head
        if time.monotonic() >= self._observer.next:
            exchange = endpoint.start_observed(head.headers, body, self._reply, self._begin_record(head))
        else:
            self.request_id = head.request_id or self._observer.make_id()
            exchange = endpoint.start_unrecorded(head.headers, body, self._reply, self)
        if self._phase is RESPONSE:  # `self._reply` may already have run and changed the phase
            self._exchange = exchange

    def note_error(self, exchange: UnrecordedExchange, error: Exception) -> Record:
        """Create the record of a request that has failed, and store the error in the record."""
        record = self._new_record(self._head)
        exchange.fill(record)
        record.note_error(error)
        return record

    def _write(self, reply: Reply, head: Head | None, *, close: bool) -> None:
        record = self._record
        request_id = self.request_id if record is None else record.request_id
        self._transport.write(self._context.encode(reply, close=close, head=head, request_id=request_id))
        if record is None:
            self._observer.skipped += 1
        else:
            self._finish_record(reply.status)

    def _refuse_key(self, error: RequestError, head: Head) -> None:
        self._new_record(head).note_error(error)
        super()._refuse_key(error, head)

    # --- any other request --------------------------------------------------------------------------------------------

    def _forward(self, head: Head) -> None:
        token = current_record.set(self._begin_record(head))  # the app's task gets a copy of this context variable
        try:
            super()._forward(head)
        finally:
            current_record.reset(token)

    def _inner_changed(self) -> None:
        if self._inner.responded:
            self._finish_record(self._inner.status)
        super()._inner_changed()

    # --- closing ------------------------------------------------------------------------------------------------------

    def _close(self, *, abort: bool = False) -> None:
        self._record_unanswered()
        super()._close(abort=abort)

    def _record_unanswered(self) -> None:
        """Create the missing record of a request whose client has disconnected."""
        if isinstance(self._exchange, UnrecordedExchange):
            self._exchange.fill(self._new_record(self._head))

    def _refuse(self, error: RequestError) -> None:
        status = self._inner.status or STATUS[type(error)][0]
        if self._record is None and self._phase is not APP_BODY:  # the app may answer before the whole body arrives
            self._new_record(self._head if self._phase is BODY else None)
        if self._record is not None:
            self._record.note_error(error)
        super()._refuse(error)
        self._finish_record(status)
