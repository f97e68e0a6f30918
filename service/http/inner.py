"""Runs another protocol inside a connection, such as uvicorn's protocol with the FastAPI app.

The connection and the inner protocol use only the interfaces of asyncio, and do not depend on each other. The inner
protocol gets one forwarded request at a time, as unchanged bytes. The inner protocol writes its responses to an inner
transport. The inner transport writes the bytes of the responses to the real transport, and parses these bytes to find
the end of each response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import httptools

from foldserve.service.http.head import Head


class Inner:
    """The inner protocol of one connection. The inner protocol is created when the first request is forwarded.

    on_change: a function that is called after `is_reading` or `responded` has changed. on_close: a function that is
    called when the inner protocol closes its transport.
    """

    __slots__ = ("_create_protocol", "_inner", "_on_change", "_on_close", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        create_protocol: Callable[[], asyncio.Protocol],
        on_change: Callable[[], object],
        on_close: Callable[[], object],
    ) -> None:
        self._transport = transport
        self._create_protocol = create_protocol
        self._on_change = on_change
        self._on_close = on_close
        self._inner: InnerTransport | None = None

    @property
    def responding(self) -> bool:
        """Whether the first byte of the response to the current request has been written."""
        return self._inner is not None and self._inner.responding

    @property
    def responded(self) -> bool:
        """Whether all bytes of the response to the current request have been written."""
        return self._inner is not None and self._inner.responded

    @property
    def status(self) -> int:
        """The status code of the response to the current request; 0 until the response begins."""
        return 0 if self._inner is None else self._inner.status

    @property
    def closes(self) -> bool:
        """Whether the connection must close after the response to the current request."""
        return self._inner is not None and self._inner.closes

    @property
    def is_reading(self) -> bool:
        """Whether the inner protocol accepts more bytes of the current request."""
        return self._inner is None or self._inner.is_reading()

    def begin(self, head: Head, *, write_paused: bool) -> None:
        """Forward the head of a request. write_paused: whether the real transport has called `pause_writing`."""
        if self._inner is None:
            self._inner = InnerTransport(self._transport, self._create_protocol(), self._on_change, self._on_close)
            if write_paused:
                self._inner.protocol.pause_writing()
        self._inner.begin(head.method)
        self._inner.protocol.data_received(head.raw)

    def data_received(self, data: bytes) -> None:
        """Forward bytes of the body to the inner protocol."""
        if self._inner is not None:
            self._inner.protocol.data_received(data)

    def eof_received(self) -> None:
        if self._inner is not None:
            self._inner.protocol.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.protocol.resume_writing()

    def disconnect(self, exc: Exception | None = None) -> None:
        """Disconnect the inner protocol. The next forwarded request gets a new inner protocol."""
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.detach(exc)


class InnerTransport(asyncio.Transport):
    """The transport of an inner protocol.

    The docstring of `Inner` describes the attributes and arguments of this class.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        on_change: Callable[[], object],
        on_close: Callable[[], object],
    ) -> None:
        super().__init__()
        self.responding = self.responded = self.closes = False
        self.status = 0
        self._transport = transport
        self._protocol: asyncio.BaseProtocol = protocol
        self._on_change = on_change
        self._on_close = on_close
        self._parser = httptools.HttpResponseParser(self)
        self._method = b""
        self._reading = True
        self._attached = True
        protocol.connection_made(self)

    # --- for `Inner` --------------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> asyncio.Protocol:
        """The inner protocol. `Inner` calls its callbacks in the same way as an event loop."""
        return self._protocol  # type: ignore[return-value]  # uvicorn would set another protocol for websockets

    def begin(self, method: bytes) -> None:
        """Prepare for the response to a new request."""
        if self._method == b"HEAD":  # a response to HEAD has no body, but the parser still waits for a body
            self._parser = httptools.HttpResponseParser(self)
        self._method = method
        self.responding = self.responded = False
        self.status = 0

    def detach(self, exc: Exception | None = None) -> None:
        """Disconnect the inner protocol. The real transport stays open."""
        self._attached = False
        del self._parser  # breaks the reference cycle between the transport and its parser
        self._protocol.connection_lost(exc)

    # --- for the inner protocol ---------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._attached and data:
            self._transport.write(data)
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._on_close()  # the end of this response is unknown, so no other response may follow

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if self._attached:
            self._on_close()

    def abort(self) -> None:
        if self._attached:
            self._transport.abort()

    def is_closing(self) -> bool:
        return not self._attached or self._transport.is_closing()

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._set_reading(reading=False)

    def resume_reading(self) -> None:
        self._set_reading(reading=True)

    def _set_reading(self, *, reading: bool) -> None:
        if self._attached and reading != self._reading:
            self._reading = reading
            self._on_change()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False

    # --- called by httptools, which reads the responses ---------------------------------------------------------------

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # the inner protocol may send 100 Continue before the response
            self.responding = True
            self.status = status
            if self._method == b"HEAD":
                self._end()
            else:
                self.closes = not self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self.responding:
            self._end()

    def _end(self) -> None:
        if not self.responded:
            self.responded = True
            # The callback runs in the next turn of the event loop, because the inner protocol is still inside its call
            # of `write`.
            asyncio.get_running_loop().call_soon(self._on_change)
