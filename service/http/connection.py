"""One HTTP/1.1 connection.

The connection answers predictions itself and forwards every other request to an inner protocol. A prediction needs no
task and no ASGI messages: the connection passes the body to `Endpoint.start`, and writes the reply to the socket. The
connection handles one request at a time, so the bytes of later requests wait. `phase.py` has a diagram of the phases.
This module does not depend on the app or on uvicorn, because any `asyncio.Protocol` can be the inner protocol. This
module has more than 350 lines, because one class makes all changes of the phase.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from foldserve.service.access.guard import Guard
from foldserve.service.access.keys import Scope
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import Exchange
from foldserve.service.errors import RequestError, TooSlow
from foldserve.service.http.body import BodyReader
from foldserve.service.http.context import ConnectionContext
from foldserve.service.http.head import BLANK_LINE, Head, HeadReader
from foldserve.service.http.inner import Inner
from foldserve.service.http.phase import (
    APP_BODY,
    APP_RESPONSE,
    BODY,
    CLOSED,
    HEAD,
    IDLE,
    READING,
    RECEIVING,
    REFUSED,
    RESPONSE,
)
from foldserve.service.http.stopping import has_bytes
from foldserve.service.protocols.reply import Reply, refusal

# The connection closes this number of seconds after an error response. Until the connection closes, the client can read
# the response, even if the client is still sending its request.
_LINGER_SECONDS = 2
# When the server stops, an idle connection stays open for _LAST_SECONDS, because the client may already have sent a
# request. If the client was active recently, its connection stays open until _ACTIVE_SECONDS after the last activity.
_LAST_SECONDS, _ACTIVE_SECONDS = 0.1, 1.0
# libuv reads up to 8 MB from one connection before it reads from another connection. To prevent large bodies from
# delaying other requests, a connection that has read this number of bytes pauses until the next turn of the event loop.
# If fewer bytes than this number are left in the body, the connection does not pause, because a pause takes time.
_LONG_READ = 2**17
# A client may close its side of the connection while it waits for responses. After the client has closed its side, the
# server sends responses for at most this number of seconds.
_HALF_CLOSED_SECONDS = 1.0


class Connection(asyncio.Protocol):
    """A client's connection, over TCP, a Unix socket or TLS.

    create_inner: a function that creates the inner protocol when the first request is forwarded. connections: the set
    of open connections; it contains this object while the client is connected.
    """

    _transport: asyncio.Transport
    _inner: Inner
    _head: Head  # assigned when the phase BODY or APP_BODY begins

    def __init__(
        self,
        context: ConnectionContext,
        create_inner: Callable[[], asyncio.Protocol],
        connections: set[Connection],
    ) -> None:
        self._context = context
        self._create_inner = create_inner
        self._connections = connections
        self._phase = IDLE
        # the latest time at which a request began, the connection became idle, or the client stopped reading
        self._since = 0.0
        self._last = False  # whether the connection reads no more requests, and closes after the last response
        # The received bytes, and the offset of the first byte that is not parsed yet.
        self._unread, self._offset = b"", 0
        self._head_reader = HeadReader(context.heads)
        self._endpoint: Endpoint | None = None  # the endpoint in the phase BODY; None in the phase APP_BODY
        self._body: BodyReader | None = None  # not None in the phases BODY and APP_BODY
        self._exchange: Exchange | None = None  # the running prediction in the phase RESPONSE
        self._reading, self._write_paused = True, False

    # --- called by the event loop -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._inner = Inner(transport, self._create_inner, self._inner_changed, self._inner_closed)
        self._since = time.monotonic()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._context.share.change(-1)
        self._drop_bytes()
        self._phase = CLOSED
        if self._exchange is not None:
            self._exchange.cancel()
        self._inner.disconnect(exc)

    def eof_received(self) -> bool:
        """Keep the connection open if a response is due, because the client may have closed only its own side."""
        self._inner.eof_received()
        # The server can't see whether the client has closed only its own side or has disconnected. The rows of a
        # disconnected client must not stay in the queue for long.
        waits = self._phase in (RESPONSE, APP_RESPONSE) or bool(self._unread)
        due = waits and self._transport.can_write_eof()
        if waits and not due:
            self._close()  # with TLS, the event loop now closes both sides, so no response can reach the client
        elif due and not self._last:
            asyncio.get_running_loop().call_later(_HALF_CLOSED_SECONDS, self._close_half_closed)
            self._last = True
        return due

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._phase not in RECEIVING:
            self._since = time.monotonic()
        self._inner.pause_writing()
        self._set_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._phase not in RECEIVING:
            self._since = time.monotonic()
        self._inner.resume_writing()
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._phase is IDLE and not self._unread and self._take_whole_request(data):
            return
        if self._phase not in (REFUSED, CLOSED):
            self._unread, self._offset = self._unread[self._offset :] + data, 0
            self._advance()
        if len(data) >= _LONG_READ and self._reading and self._expects_more():
            self._reading = False
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._set_reading)

    def _expects_more(self) -> bool:
        """Return whether many more bytes may arrive soon. A client that waits for a response sends no bytes."""
        if self._body is None:
            return self._phase not in (RESPONSE, APP_RESPONSE)
        return self._body.left >= _LONG_READ

    def _take_whole_request(self, data: bytes) -> bool:
        """Start a prediction if `data` is exactly one whole request for a prediction.

        This method is the fast path, which handles nearly all requests.
        """
        body_start = data.find(BLANK_LINE) + len(BLANK_LINE)
        try:
            head = self._context.heads[data[:body_start]]
        except RequestError as error:
            self._refuse(error)
            return True
        if (
            head is not None
            and len(data) - body_start == head.content_length
            and head.content_length <= self._context.limits.max_body
            and (endpoint := self._context.find_endpoint(head)) is not None
        ):
            if (guard := self._context.guard) is None or self._admit(guard, head):
                self._start(endpoint, head, data[body_start:])
            return True
        return False

    def _admit(self, guard: Guard, head: Head) -> bool:
        """Check the API key of a complete request for an endpoint. If the key is refused, send an error response."""
        try:
            guard.check(head.headers, Scope.PREDICT)
        except RequestError as error:
            self._refuse_key(error, head)
            return False
        return True

    def _refuse_key(self, error: RequestError, head: Head) -> None:
        self._phase, self._head = RESPONSE, head
        self._context.count_rejected(error)
        self._reply(refusal(error))

    # --- called by the server -----------------------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """Refuse a request that takes too long, or close an unused connection. Call this method about once a second."""
        waited = now - self._since
        timeout = self._context.limits.request_timeout
        if self._phase in RECEIVING:
            if waited > timeout:
                self._refuse(TooSlow(f"the request was not whole in {timeout:g} s"))
        elif self._phase is REFUSED:
            if waited > _LINGER_SECONDS:
                self._close()
        elif waited > self._context.limits.idle_timeout and (self._phase in (IDLE, CLOSED) or self._write_paused):
            self._close(abort=self._write_paused)

    def shutdown(self) -> None:
        """Respond to all requests that the client has already sent, then close the connection."""
        self._last = True
        if self._phase is IDLE:
            active = self._since + _ACTIVE_SECONDS - time.monotonic()
            asyncio.get_running_loop().call_later(max(_LAST_SECONDS, active), self._close_if_idle)
        elif self._phase is REFUSED:
            self._close()

    def abort(self) -> None:
        """Close the connection at once. Responses that the client has not read yet are lost."""
        self._close(abort=True)

    # --- a request ----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Parse the received bytes. Stop when no byte is left, or when the next request must wait for a response."""
        while self._offset < len(self._unread) and self._phase in READING and not self._write_paused:
            try:
                self._read_head() if self._body is None else self._read_body(self._body)
            except RequestError as error:
                self._refuse(error)
        if self._offset == len(self._unread):
            self._unread, self._offset = b"", 0
        self._set_reading()

    def _read_head(self) -> None:
        """Parse bytes until the head is complete, or until no byte is left."""
        head, self._offset = self._head_reader.read(self._unread, self._offset)
        if self._phase is IDLE and (head is not None or self._head_reader.begun):
            self._phase = HEAD
            self._since = time.monotonic()
        if head is not None:
            self._begin(head)

    def _begin(self, head: Head) -> None:
        """Choose an endpoint or the inner protocol for a request, then prepare to read the body."""
        limits = self._context.limits
        self._head, self._endpoint = head, self._context.find_endpoint(head)
        if self._endpoint is None:
            self._body = body = BodyReader(head, limits.max_head, None, self._context.memory)
            self._forward(head)
        else:
            self._phase = BODY
            if (guard := self._context.guard) is not None:
                guard.check(head.headers, Scope.PREDICT)
            self._body = body = BodyReader(head, limits.max_head, limits.max_body, self._context.memory)
            if head.headers.get(b"expect", b"").lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if body.complete:
            self._finish(body)

    def _read_body(self, body: BodyReader) -> None:
        """Read bytes of the body until the request is complete, or until no byte is left."""
        start, self._offset = self._offset, body.read(self._unread, self._offset)
        if self._phase is APP_BODY:
            self._inner.data_received(self._unread[start : self._offset])
        if body.complete:
            self._finish(body)

    def _finish(self, body: BodyReader) -> None:
        """Start waiting for the response to a complete request."""
        self._body = None
        if self._endpoint is not None:
            # The endpoint is looked up again, because the model may have changed while the body arrived.
            endpoint = self._context.find_endpoint(self._head) or self._endpoint
            self._start(endpoint, self._head, body.take())
        else:
            self._phase = APP_RESPONSE
            self._inner_changed()

    def _start(self, endpoint: Endpoint, head: Head, body: bytes | bytearray) -> None:
        self._phase, self._head = RESPONSE, head
        exchange = endpoint.start(head.headers, body, self._reply)
        if self._phase is RESPONSE:  # `endpoint.start` may already have called `_reply`, which changes the phase
            self._exchange = exchange

    def _reply(self, reply: Reply) -> None:
        """Write the reply of an endpoint to the client."""
        self._exchange = None
        close = not self._head.keep_alive or (self._last and not self._unread)
        self._write(reply, self._head, close=close)
        self._become_idle(close=close)

    def _write(self, reply: Reply, head: Head | None, *, close: bool) -> None:
        """Write a response. head: the head of the request; None if the head could not be read."""
        request_id = b"" if head is None else head.request_id
        self._transport.write(self._context.encode(reply, close=close, head=head, request_id=request_id))

    def _become_idle(self, *, close: bool) -> None:
        self._phase = IDLE
        self._since = time.monotonic()
        if close:
            self._close()
        elif self._unread:
            # `_advance` may already be running, so this method schedules `_advance` instead of calling it.
            asyncio.get_running_loop().call_soon(self._advance)

    # --- the inner protocol -------------------------------------------------------------------------------------------

    def _forward(self, head: Head) -> None:
        """Let the inner protocol respond to a request. Raises `InvalidHttp` for a URL without a path."""
        head.check_path()
        self._phase = APP_BODY
        self._inner.begin(head, write_paused=self._write_paused)

    def _inner_changed(self) -> None:
        if self._phase is APP_RESPONSE and self._inner.responded:
            self._become_idle(close=self._inner.closes or (self._last and not self._unread))
        self._set_reading()

    def _inner_closed(self) -> None:
        """Close the connection if a forwarded request is not finished; otherwise, only remove the inner protocol."""
        if self._phase in (APP_BODY, APP_RESPONSE):
            self._close()
        else:
            self._inner.disconnect()

    # --- closing ------------------------------------------------------------------------------------------------------

    def _refuse(self, error: RequestError) -> None:
        """Write an error response, and read no more requests.

        The client may still be sending its request. If the server closed the connection immediately, the kernel would
        reset the connection, and the client might never read the response. To avoid a reset, the server at first closes
        only its own side of the connection.
        """
        reply: Reply | None = refusal(error)
        head = self._head if self._phase is BODY else None
        if self._phase is APP_BODY and self._inner.responding:
            reply = None
        self._inner.disconnect()
        self._drop_bytes()
        self._phase = REFUSED
        self._since = time.monotonic()
        if self._transport.is_closing():
            return
        self._context.count_rejected(error)
        if reply is not None:
            self._write(reply, head, close=True)
        if self._transport.can_write_eof():  # with TLS, a server can't close only its own side of a connection
            self._transport.write_eof()

    def _close_half_closed(self) -> None:
        """Close the connection, unless a response is being written."""
        if self._phase is CLOSED:
            return
        if self._write_paused or (self._phase is APP_RESPONSE and self._inner.responding):
            asyncio.get_running_loop().call_later(_HALF_CLOSED_SECONDS, self._close_half_closed)
        else:
            self._close()

    def _drop_bytes(self) -> None:
        """Free the memory of the bytes that were received."""
        self._unread, self._offset = b"", 0
        if self._body is not None:
            self._body.take()  # frees the bytes, although a chunked body's reader and parser form a reference cycle
            self._body = None

    def _close_if_idle(self) -> None:
        """Close the connection.

        The connection stays open if the kernel has received bytes of a request that the event loop has not read yet.
        """
        if self._phase is IDLE and has_bytes(self._transport):
            asyncio.get_running_loop().call_later(_LAST_SECONDS, self._close_if_idle)
        elif self._phase is IDLE:
            self._close()

    def _close(self, *, abort: bool = False) -> None:
        """Close the connection after the last response is written, or at once if `abort` is true.

        While the server stops, a client may still read its response slowly, so only a time-out may drop the rest of a
        response.
        """
        self._drop_bytes()
        self._phase = CLOSED
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        if abort or self._transport.is_closing():
            self._transport.abort()
        else:
            self._since = time.monotonic()
            self._transport.close()

    def _set_reading(self) -> None:
        """Pause or resume reading from the socket, so that unread bytes do not fill the memory."""
        reading = (
            not self._write_paused
            and (not self._unread or self._phase in READING)
            and (self._phase is not APP_BODY or self._inner.is_reading)
        )
        if reading != self._reading and self._phase is not CLOSED:
            self._reading = reading
            self._transport.resume_reading() if reading else self._transport.pause_reading()
