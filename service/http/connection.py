"""HTTP/1.1 on one connection: limits and deadlines for every request, and the hot ones answered right here.

uvicorn's protocol parses and runs the app; this one comes before it. A POST whose path is an endpoint's never becomes
a task, a scope and two ASGI messages: its body goes to the endpoint, and the endpoint's reply to the socket. All the
rest, a path that needs decoding and a request that another one is in front of too, goes on to the app, which has the
same endpoints.

bytes -> head within its limits -> endpoint? -> body within its limit -> Endpoint.start -> reply -> bytes
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from foldserve.service import errors
from foldserve.service.engine.endpoint import Endpoint
from foldserve.service.engine.exchange import Exchange
from foldserve.service.protocols.reply import Headers, Reply, refusal

_MAX_URL = 8192
# How long a client that was refused in the middle of its request may take to read that.
_LINGER_SECONDS = 2
_LOG_SECONDS = 0.05
# How long a connection that is idle when the server stops may still bring the request that its client has sent.
_LAST_SECONDS = 0.1


@dataclass(frozen=True)
class Limits:
    """Bytes of the head and of the body; seconds for a whole request to come in, and for a connection to be idle."""

    max_head: int
    max_body: int
    request_timeout: float
    idle_timeout: float


class AccessLog:
    """A line a request, as uvicorn's own, and one write for all that have been answered in a twentieth of a second."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        atexit.register(self._write)  # what the end of the event loop has left

    def __call__(self, client: tuple[str, int] | None, url: bytes, status: int) -> None:
        """Note one answered request."""
        if not self._lines:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._write)
        who = f"{client[0]}:{client[1]}" if client else ""
        self._lines.append(f'INFO uvicorn.access: {who} - "POST {url.decode()} HTTP/1.1" {status}\n')

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            now = time.time()
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03d} "
            sys.stderr.write(stamp + stamp.join(lines))
            sys.stderr.flush()


class _Arrived:
    """Stands for `asyncio.Event` where uvicorn's protocol wakes whoever waits for a body: here nobody does."""

    def set(self) -> None:
        pass


class _Hot:
    """A request on its way to an endpoint; to uvicorn's protocol it looks like one of its own cycles."""

    __slots__ = (
        "body",
        "disconnected",
        "endpoint",
        "exchange",
        "headers",
        "keep_alive",
        "protocol",
        "response_complete",
        "url",
    )

    message_event = _Arrived()

    def __init__(self, protocol: Protocol, endpoint: Endpoint, headers: Headers, *, keep_alive: bool) -> None:
        self.protocol = protocol
        self.endpoint = endpoint
        self.headers = headers
        self.url = protocol.url
        self.keep_alive = keep_alive  # uvicorn takes it away when the server stops
        self.body: bytes | bytearray = b""
        self.exchange: Exchange | None = None
        self.response_complete = False
        self.disconnected = False

    def start(self) -> None:
        body, self.body = bytes(self.body), b""
        exchange = self.endpoint.start(self.headers, body, self.reply)
        if not self.response_complete:
            self.exchange = exchange

    def reply(self, reply: Reply) -> None:
        self.response_complete = True
        self.exchange = None  # this object stays until the connection's next request, what it has had need not
        self.protocol.answer(self, reply)

    def cancel(self) -> None:
        if self.exchange is not None:
            self.exchange.cancel()


class _Flow(FlowControl):
    """Reads on only when nothing waits, neither requests for their answers nor answers for their reader."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        if not self.write_paused and not self._protocol.pipeline:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        endpoints: Mapping[bytes, Endpoint],
        limits: Limits,
        access: AccessLog | None,
        rejected: Callable[[errors.RequestError], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._endpoints = endpoints
        self._limits = limits
        self._access = access
        self._rejected = rejected
        self._hot: _Hot | None = None
        self._is_hot = False  # what is being parsed, where `_hot` may be the one before it
        self._in_app = 0  # requests that the app has not answered yet
        self._in_head = True  # of what is being parsed: it has no cycle yet
        self._head_size = 0  # bytes that have come since the head began, or since the last of the body, roughly
        self._receiving = False  # a request has begun, and is not whole
        self._since = 0.0  # when it began, or when the connection fell idle
        self._error: errors.RequestError | None = None
        self._last = False  # the server stops: no request after this one
        self._refused = False
        self._refusal: Reply | None = None  # it waits for the answers to the requests before

    # --- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(self)
        self._since = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hot is not None:
            self._hot.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:  # what the client sends on is taken and dropped, or it would never read the refusal
            return
        self._unset_keepalive_if_required()
        self._head_size += len(data)
        self._parse(data)
        if self._head_size > self._limits.max_head and (self._in_head or self._receiving) and not self._refused:
            self._refuse(errors.HeadTooLarge(f"the headers are larger than {self._limits.max_head} bytes"))

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._go_on_without_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            # Or what a callback has stopped the parser for.
            self._refuse(self._error or errors.InvalidHttp("the bytes are no HTTP request"))

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Serve a request that would rather speak another protocol, as if it had not said so.

        Java's client asks for HTTP/2 in this way. The parser takes the request for ended with its head, and what
        follows for the other protocol.
        """
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = (b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does, to answer before it
        self._parse(b"".join((line, *headers, b"\r\n", rest)))

    def check(self, now: float) -> None:
        """Close the connection if its client has been too slow, or has left it unused. Call it every second or so."""
        if self._refused:
            if now - self._since > _LINGER_SECONDS and (self._refusal is None or self.flow.write_paused):
                self._let_go()
        elif self._receiving:
            if now - self._since > self._limits.request_timeout:
                self._refuse(errors.TooSlow(f"the request was not whole in {self._limits.request_timeout:g} s"))
        elif now - self._since > self._limits.idle_timeout and (
            self.cycle is None or self.cycle.response_complete or self.flow.write_paused
        ):
            self._let_go()

    def _let_go(self) -> None:
        """Close. What a client doesn't read would be kept for it until it does."""
        self.transport.abort() if self.flow.write_paused or self.transport.is_closing() else self.transport.close()

    def shutdown(self) -> None:
        """Finish what is under way, at the server's end, and what is on its way to an idle connection."""
        self._last = True
        if self._refused:
            if self._refusal is None:
                self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if not self._receiving and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def pause_writing(self) -> None:
        """Read no more from a client that doesn't read its answers."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        super().resume_writing()
        self.flow.resume_reading()

    # --- the parser's callbacks -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._receiving = True
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_URL:
            self._stop(errors.UrlTooLong(f"the URL is longer than {_MAX_URL} bytes"))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._stop(errors.InvalidHttp("this server is no proxy"))
            return
        headers = dict(self.headers)
        version = self.parser.get_http_version()
        if self._head_size > self._limits.max_head and self._head_bytes() > self._limits.max_head:
            self._stop(errors.HeadTooLarge(f"the headers are larger than {self._limits.max_head} bytes"))
        if version != "1.1":
            if version != "1.0":
                self._stop(errors.InvalidHttp("the version of HTTP is neither 1.1 nor 1.0"))
        elif b"host" not in headers:
            self._stop(errors.InvalidHttp("the Host header is missing"))
        endpoint = self._endpoints.get(self.url)
        if (
            endpoint is None
            or self.parser.get_method() != b"POST"
            or not (self.cycle is None or self.cycle.response_complete)
        ):
            self._go_on_to_the_app()
            return
        # The parser has refused anything but digits.
        if int(headers.get(b"content-length", 0)) > self._limits.max_body:
            self._stop_too_large()
        keep_alive = version != "1.0" and self.parser.should_keep_alive() and not self._last
        self._hot = _Hot(self, endpoint, headers, keep_alive=keep_alive)
        self._is_hot = True
        self._in_head = False
        self.cycle = self._hot  # type: ignore[assignment]
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _go_on_to_the_app(self) -> None:
        self._is_hot = False
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, and empties what the parser has told since
        self.url, self.headers, self.expect_100_continue = url, headers, expect
        self.scope["headers"] = headers
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False
        self._in_head = False
        self._in_app += 1
        self.headers = []  # trailers are none of them

    def on_body(self, body: bytes) -> None:
        self._head_size = 0
        hot = self._hot
        if hot is None or not self._is_hot:
            super().on_body(body)
            return
        if not hot.body:
            hot.body = body
        elif type(hot.body) is bytearray:
            hot.body += body
        else:
            hot.body = bytearray(hot.body) + body
        if len(hot.body) > self._limits.max_body:
            self._stop_too_large()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_size = True, 0
        self._receiving = False
        hot = self._hot
        if hot is None or not self._is_hot:
            super().on_message_complete()
        else:
            hot.start()

    # --- the answer -------------------------------------------------------------------------------------------------

    def answer(self, hot: _Hot, reply: Reply) -> None:
        """Write the reply, and go on with what has come behind the request."""
        self._hot = None
        if self.transport.is_closing():
            return
        if self._access is not None:
            self._access(self.client, hot.url, reply.status)
        self._write(reply, close=not hot.keep_alive)
        if not hot.keep_alive:
            self.transport.close()
        self._since = time.monotonic()
        if self.pipeline:
            super().on_response_complete()
        elif self._refusal is not None:
            self._end(self._refusal)

    def on_response_complete(self) -> None:
        """Go on after an answer of the app."""
        self._in_app -= 1
        if not self._receiving:
            self._since = time.monotonic()
        super().on_response_complete()
        if self._refusal is not None and not self._in_app:
            self._end(self._refusal)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _stop(self, error: errors.RequestError) -> NoReturn:
        """Leave the parser, which calls nothing more, for `_parse`."""
        self._error = error
        raise error

    def _stop_too_large(self) -> NoReturn:
        self._stop(errors.TooLarge(f"the body is larger than {self._limits.max_body} bytes"))

    def _refuse(self, error: errors.RequestError) -> None:
        """Take no more of this connection's requests; tell that once those before this one are answered."""
        self._refused = True
        if self.transport.is_closing():
            return
        self._rejected(error)
        reply = None if self._let_go_of_the_app() else refusal(error)
        hot_before = self._hot is not None and (self._in_head or not self._is_hot)
        if self._in_app or hot_before:
            self._refusal = reply
        else:
            self._end(reply)

    def _let_go_of_the_app(self) -> bool:
        """Take what is being received away from the app, if it has it. True: an answer has begun, or is complete."""
        cycle = self.cycle
        if self._in_head or self._is_hot:
            return False
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._in_app -= 1
            if self.pipeline:  # it is the last of them
                self.pipeline.popleft()
        return cycle.response_started

    def _end(self, reply: Reply | None) -> None:
        """Close this side of the connection, and take what comes a little longer, or the client might never read it."""
        self._refusal = None
        self._since = time.monotonic()
        if not self.transport.is_closing():
            if reply is not None:
                self._write(reply, close=True)
            self.transport.write_eof()

    def _write(self, reply: Reply, *, close: bool) -> None:
        lines = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers):
            lines += (name, b": ", value, b"\r\n")
        if close:
            lines.append(b"connection: close\r\n")
        lines += (b"content-length: ", b"%d" % len(reply.body), b"\r\n\r\n", reply.body)
        self.transport.write(b"".join(lines))
