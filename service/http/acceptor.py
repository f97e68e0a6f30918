"""Accepts the clients of one listening socket. This module uses asyncio for protocols and for TLS.

uvloop accepts only one connection in each turn of the event loop. If hundreds of connections are busy, each turn takes
long, and new clients and health checks would wait for many turns. An `Acceptor` accepts up to _MAX_PER_TURN waiting
connections in each turn, so that new clients wait less. If several workers share the socket, the workers with more
connections wait for a moment, so that the worker with the fewest connections accepts first. This module does not depend
on HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from foldserve.service.http.shares import Share

log = logging.getLogger("foldserve")

# The largest number of connections that are accepted in one turn of the event loop. Further connections wait for the
# next turn, so that the event loop also serves the connections that are already open.
_MAX_PER_TURN = 64
# If another worker has fewer connections, this worker waits for this number of seconds before it checks again.
_YIELD_SECONDS = 0.001
# A worker that has more connections than another worker waits at most _MAX_YIELDS times for the other worker. After
# _MAX_YIELDS waits, the other worker may hang, so the waiting worker accepts _MAX_PER_YIELD connections itself.
# _MAX_PER_YIELD is small, so that another worker that is only slow still gets its share of the connections.
_MAX_YIELDS = 20
_MAX_PER_YIELD = 8
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

    listener: a socket that listens. The caller closes the listener after `stop`. current_tls: a function that returns
    the TLS context for the next handshake; None means connections without TLS. share: counts the connections of this
    process; None if no other worker accepts connections of this listener. Each protocol counts its connection in
    `share`.
    """

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[], asyncio.BaseProtocol],
        current_tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        share: Share | None = None,
    ) -> None:
        self._listener = listener
        self._create_protocol = create_protocol
        self._current_tls = current_tls
        self._share = share
        self._yields = 0  # the number of times that this worker has waited for another worker to accept
        self._opening: set[asyncio.Task[None]] = set()  # one task per accepted connection that has no protocol yet
        self._retry: asyncio.TimerHandle | None = None  # not None while accepting is paused
        self._failing = False  # whether the last call of `accept` failed; if so, this failure is already logged

    def start(self) -> None:
        """Begin to accept connections. Call this method only on the event loop."""
        self._listener.setblocking(False)
        if self._share is not None:
            self._share.join()
        self._watch()

    async def stop(self) -> None:
        """Accept the connections that the kernel has queued, then stop accepting.

        If the listener closed while connections were queued, the kernel would reset these connections, although their
        clients may already have sent requests.
        """
        if self._share is not None:
            self._share.leave()
        for _ in range(_MAX_AT_STOP):
            if not self._accept_one():
                break
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        if self._opening:
            await asyncio.wait(self._opening, timeout=_HANDSHAKE_SECONDS)

    def _watch(self) -> None:
        self._retry = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        overdue = self._yields == _MAX_YIELDS
        for _ in range(_MAX_PER_YIELD if overdue else _MAX_PER_TURN):
            if not overdue and self._share is not None and not self._share.is_smallest(len(self._opening)):
                self._yields += 1
                self._wait(_YIELD_SECONDS)
                return
            if not self._accept_one():
                break
        self._yields = 0

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
        task = asyncio.get_running_loop().create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            tls = self._current_tls()
            await asyncio.get_running_loop().connect_accepted_socket(self._create_protocol, connection, ssl=tls)
        except OSError:  # the client does not use TLS, or has disconnected
            connection.close()
        except Exception:
            log.exception("internal error")
            connection.close()

    def _pause(self, error: OSError) -> None:
        """Stop accepting connections for _RETRY_SECONDS.

        Without a pause, the event loop would call `accept` again and again, because the socket stays readable.
        """
        if not self._failing:
            log.error("can't accept connections: %s", error.strerror)
        self._failing = True
        self._wait(_RETRY_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Stop watching the listener for `seconds` seconds."""
        if self._retry is None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            self._retry = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._watch()
        self._accept()
