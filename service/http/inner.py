"""A connection inside a connection. It runs another protocol, such as uvicorn's protocol with the FastAPI app.

Both sides know only the interfaces of asyncio. The inner protocol gets the bytes of the forwarded requests, unchanged
and one request at a time, and a transport of its own. That transport writes the responses to the real one, and parses
them to find the end of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import httptools


class InnerConnection(asyncio.Transport):
    """The transport of the inner protocol.

    responding, responded: a byte of the response to the current request, or all of it, has been written.
    closes: no other response may follow this one.
    on_change: called after `is_reading` or `responded` has changed.
    on_close: called when the inner protocol closes its transport.
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
        self._transport = transport
        self._protocol: asyncio.BaseProtocol = protocol
        self._on_change = on_change
        self._on_close = on_close
        self._parser = httptools.HttpResponseParser(self)
        self._method = b""
        self._reading = True
        self._attached = True
        protocol.connection_made(self)

    # --- for the connection -------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> asyncio.Protocol:
        """The inner protocol, whose callbacks the connection calls as an event loop does."""
        return self._protocol  # type: ignore[return-value]  # uvicorn would set another one for websockets

    def begin(self, method: bytes) -> None:
        """Expect the response to a request."""
        if self._method == b"HEAD":  # the parser still expects the body of that response
            self._parser = httptools.HttpResponseParser(self)
        self._method = method
        self.responding = self.responded = False

    def detach(self, exc: Exception | None = None) -> None:
        """Disconnect the inner protocol. The real transport stays open."""
        self._attached = False
        del self._parser  # breaks a reference cycle
        self._protocol.connection_lost(exc)

    # --- for the inner protocol ---------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._attached and data:
            self._transport.write(data)
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._on_close()  # the end of this response is unknown, so no other may follow

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
        if self._parser.get_status_code() >= 200:  # 100 Continue comes before the response
            self.responding = True
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
            # Later, because the inner protocol has not returned from its last write.
            asyncio.get_running_loop().call_soon(self._on_change)
