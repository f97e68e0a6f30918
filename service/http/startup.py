"""Answers clients while the models are loaded for the first time. The process is alive, but no model is ready.

This module accepts connections on a separate thread. When the models are loaded, the server takes over the listeners.
This module does not depend on models. The only routes of this module are the health routes.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from foldserve.service.http.head import BLANK_LINE
from foldserve.service.http.health import probe_reply
from foldserve.service.http.listeners import BACKLOG, Listeners
from foldserve.service.http.security import NO_SNIFF
from foldserve.service.http.tls import Tls
from foldserve.service.protocols.reply import Reply, failure

_MAX_HEAD = 2**16
# The number of seconds in which a client must send its request and read the response.
_CONNECTION_SECONDS = 5.0
_STOP_SECONDS, _JOIN_SECONDS = 5.0, 1.0
# The largest value of Retry-After, in seconds.
_MAX_RETRY = 30


class StartupResponder:
    """Answers clients of the listeners from `start` to `stop`.

    tls: the certificates of each listener; None for a listener without TLS. The responder closes each connection after
    one response, so that the client's next request can reach the server with the loaded models.
    """

    _loop: asyncio.AbstractEventLoop  # from `start` on

    def __init__(self, listeners: Listeners, tls: Sequence[Tls | None]) -> None:
        self._listeners = listeners
        self._tls = tls
        self._since = time.monotonic()
        self._wanted = asyncio.Event()  # setting this event stops the responder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="startup", daemon=True)

    def start(self) -> None:
        """Let clients connect. Raises `StartError`."""
        self._listeners.listen()
        self._loop = asyncio.SelectorEventLoop()
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections. The server accepts the connections that still wait in the kernel.

        The thread continues until the last accepted connection ends, which takes at most a few seconds.
        """
        if not self._stopped.is_set():
            self._loop.call_soon_threadsafe(self._wanted.set)
            self._stopped.wait(_STOP_SECONDS)

    def join(self) -> None:
        """Stop the responder. Wait at most one second for the last responses."""
        self.stop()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._stopped.set()
            self._loop.close()

    async def _serve(self) -> None:
        servers = [
            # The listener is duplicated, because `start_server` closes its own socket at the end, but the real server
            # still needs the listener.
            await asyncio.start_server(
                self._answer, sock=listener.dup(), limit=_MAX_HEAD, backlog=BACKLOG, ssl=tls and tls.context
            )
            for listener, tls in zip(self._listeners.all, self._tls, strict=True)
        ]
        await self._wanted.wait()
        # asyncio can't answer a connection that it has accepted but not begun to serve when its server closes. So the
        # servers stop accepting, begin to serve in the next turn, and then close.
        for listener in (listener for server in servers for listener in server.sockets):
            self._loop.remove_reader(listener.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for server in servers:
            server.close()
        self._stopped.set()
        # A connection first has a task of asyncio, and only later a task of `_answer`.
        end = self._loop.time() + _CONNECTION_SECONDS + _JOIN_SECONDS
        while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) and self._loop.time() < end:
            await asyncio.wait(tasks, timeout=end - self._loop.time())

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CONNECTION_SECONDS):
                head = await reader.readuntil(BLANK_LINE)
                method, target = (*head.split(b" ", 2), b"", b"")[:2]
                writer.write(_encode(self._reply(target.partition(b"?")[0]), with_body=method != b"HEAD"))
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
                # if the client still sends bytes, closing the socket would reset the connection
                while await reader.read(_MAX_HEAD):
                    pass
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the client has disconnected, is too slow, or does not use HTTP
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _reply(self, path: bytes) -> Reply:
        if path == b"/v2/health/live":
            return probe_reply("live", holds=True)
        # The server can't predict how long loading the models will take, so Retry-After is the time that loading has
        # already taken.
        seconds = min(_MAX_RETRY, max(1, math.ceil(time.monotonic() - self._since)))
        reply = failure(503, "the server is loading its models for the first time", seconds)
        name = {b"/v2/health/ready": "ready", b"/v2/health/started": "started"}.get(path)
        return reply if name is None else Reply(503, reply.headers, probe_reply(name, holds=False).body)


def _encode(reply: Reply, *, with_body: bool) -> bytes:
    phrase = b"200 OK" if reply.status == 200 else b"503 Service Unavailable"
    length = (b"content-length", b"%d" % len(reply.body))
    headers = (NO_SNIFF, *reply.headers, (b"connection", b"close"), length)
    head = b"\r\n".join([b"HTTP/1.1 %b" % phrase, *(b"%b: %b" % header for header in headers)])
    return head + BLANK_LINE + (reply.body if with_body else b"")
