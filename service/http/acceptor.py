"""Accepts the clients of one listening socket. This module uses asyncio for protocols and for TLS.

uvloop accepts only one connection in each turn of the event loop. If hundreds of connections are busy, each turn takes
long, and new clients and health checks would wait for many turns. An `Acceptor` accepts up to _MAX_PER_TURN waiting
connections in each turn, so that new clients wait less. If several workers share the socket, a worker with many
connections leaves new connections to a worker with few connections for a moment. This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable

from foldserve.service.http.shares import Share

log = logging.getLogger("foldserve")

# The largest number of connections that are accepted in one turn of the event loop. Further connections wait for the
# next turn, so that the event loop also serves the connections that are already open.
_MAX_PER_TURN = 64
# A worker that has more connections than another worker leaves new connections to the other worker for at most this
# number of seconds. After this time, the other worker may hang, so the worker accepts _MAX_OVERDUE connections itself.
# _MAX_OVERDUE is small, so that another worker that is only slow still gets its share of the connections.
_PATIENCE_SECONDS = 0.01
_MAX_OVERDUE = 4
# If the process or the machine has no free file descriptor or memory for another connection, the acceptor tries again
# after this number of seconds.
_RETRY_SECONDS = 0.5
# The largest number of connections that are accepted when the server stops: as many as fit into the kernel's queue of
# new connections.
_MAX_AT_STOP = 2048
# The number of seconds that a client has for its TLS handshake when the server stops.
_HANDSHAKE_SECONDS = 1.0


class Acceptor:
    """Accepts connections, and creates a protocol for each connection.

    listener: a socket that listens. The caller closes the listener after `stop`. share: counts the connections of this
    process. When the client of a protocol disconnects, the protocol subtracts its connection from `share`. current_tls:
    a function that returns the TLS context for the next handshake; None means connections without TLS.
    """

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[], asyncio.BaseProtocol],
        share: Share,
        current_tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        self._listener = listener
        self._create_protocol = create_protocol
        self._current_tls = current_tls
        self._share = share
        self._patience: asyncio.TimerHandle | None = None  # set while this worker leaves connections to another worker
        self._opening: set[asyncio.Task[None]] = set()  # one task per accepted connection that has no protocol yet
        self._retry: asyncio.TimerHandle | None = None  # not None while accepting is paused
        self._failing = False  # whether the last call of `accept` failed; if so, this failure is already logged

    def start(self) -> None:
        """Begin to accept connections. Call this method only on the event loop."""
        self._listener.setblocking(False)
        self._share.join()
        self._watch()

    async def stop(self) -> None:
        """Accept the connections that the kernel has queued, then stop accepting.

        If the listener closed while connections were queued, the kernel would reset these connections, although their
        clients may already have sent requests.
        """
        self._share.leave()
        for _ in range(_MAX_AT_STOP):
            if not self._accept_one():
                break
        asyncio.get_running_loop().remove_reader(self._listener)
        for timer in (self._retry, self._patience):
            if timer is not None:
                timer.cancel()
        if self._opening:
            await asyncio.wait(self._opening, timeout=_HANDSHAKE_SECONDS)

    def _watch(self) -> None:
        self._retry = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_MAX_PER_TURN):
            if not self._share.is_fair():
                if self._patience is None:
                    self._patience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._accept_overdue)
                # The socket stays readable, so the event loop calls this method again in its next turn. Sleeping for a
                # millisecond instead would halve the rate of short connections: the counts change within microseconds.
                # The other worker may need this core.
                os.sched_yield()
                return
            if not self._accept_one():
                return

    def _accept_overdue(self) -> None:
        self._patience = None
        for _ in range(_MAX_OVERDUE):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Accept one connection. Returns whether more connections may be waiting."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # the client has already disconnected
            return True
        except OSError as error:
            self._pause(error)
            return False
        self._failing = False
        connection.setblocking(False)
        self._share.change(+1)
        task = asyncio.get_running_loop().create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            tls = self._current_tls()
            await asyncio.get_running_loop().connect_accepted_socket(self._create_protocol, connection, ssl=tls)
        except Exception as error:
            if not isinstance(error, OSError):  # with an OSError, the client does not use TLS, or has disconnected
                log.exception("internal error")
            connection.close()
            self._share.change(-1)

    def _pause(self, error: OSError) -> None:
        """Stop accepting connections for _RETRY_SECONDS.

        Without a pause, the event loop would call `accept` again and again, because the socket stays readable.
        """
        if not self._failing:
            log.error("can't accept connections: %s", error.strerror)
        self._failing = True
        loop = asyncio.get_running_loop()
        if self._retry is None:
            loop.remove_reader(self._listener)
            self._retry = loop.call_later(_RETRY_SECONDS, self._watch)
