"""Loads a server from one process. In a closed loop, a request waits for the previous response. In an open loop, a
request does not wait for other responses.

In an open loop, the latency of a request starts at its scheduled arrival, so it includes every wait that a slow server
or a late load generator causes. If all connections are busy, the request waits until a connection is idle. The module
uses plain sockets and epoll. An event loop with callbacks would need more time than the server.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PATIENCE_SECONDS = 30.0
_RECEIVE_BYTES = 2**18


@dataclass
class Outcome:
    """The responses of one load. The lists have one item for each response, in the order of the responses.

    scheduled, sent, answered: times of `time.perf_counter`, in seconds. status: 0 if the connection broke.
    """

    started: float
    scheduled: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)

    def latencies(self, status: int) -> Array:
        """Return the seconds from the scheduled arrival to the response, for each response with `status`."""
        seconds = np.array(self.answered) - np.array(self.scheduled)
        return seconds[np.array(self.status, int) == status]

    def count(self, status: int) -> int:
        """Return the number of responses with `status`."""
        return self.status.count(status)

    def span(self) -> float:
        """Return the seconds from the start to the last response."""
        return max(self.answered, default=self.started) - self.started


class _Client:
    """One keep-alive connection with at most one request at a time."""

    __slots__ = ("connection", "received", "scheduled", "sent")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.scheduled = self.sent = 0.0


class Load:
    """Sends requests on keep-alive connections to servers on this machine.

    Each server gets the same number of connections.

    broken: connections that the server has closed.
    """

    def __init__(self, ports: int | Sequence[int], connections: int) -> None:
        ports = [ports] if isinstance(ports, int) else ports
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._idle: deque[_Client] = deque()
        self._busy = 0
        self.broken = 0
        for index in range(connections):
            connection = socket.create_connection(("127.0.0.1", ports[index % len(ports)]))
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(connection)
            self._clients[connection.fileno()] = client
            self._poll.register(connection.fileno(), select.EPOLLIN)
            self._idle.append(client)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.connection.close()
        self._poll.close()

    def closed_loop(self, request: bytes, seconds: float, connections: int) -> Outcome:
        """Send a request on each of `connections` connections.

        After each response, send the next request on the same connection.
        """
        outcome = Outcome(time.perf_counter())
        end = outcome.started + seconds
        for _ in range(connections):
            self._send(self._idle.popleft(), request, time.perf_counter())
        while self._busy and time.perf_counter() < end + _PATIENCE_SECONDS:
            self._receive(outcome, 0.1)
            while self._idle and self._busy < connections and (now := time.perf_counter()) < end:
                self._send(self._idle.pop(), request, now)
        return outcome

    def open_loop(self, request: bytes, seconds: float, rate: float, *, poisson: bool, seed: int) -> Outcome:
        """Send `rate` requests a second. The intervals between requests are random (Poisson) or constant."""
        count = max(1, int(seconds * rate))
        gaps = np.random.default_rng(seed).exponential(1 / rate, count) if poisson else np.full(count, 1 / rate)
        outcome = Outcome(time.perf_counter())
        due = deque((outcome.started + np.cumsum(gaps)).tolist())
        end = due[-1]
        while (due or self._busy) and (now := time.perf_counter()) < end + _PATIENCE_SECONDS:
            while due and due[0] <= now and self._idle:
                self._send(self._idle.popleft(), request, due.popleft())
            self._receive(outcome, min(0.1, max(0.0, due[0] - time.perf_counter())) if due and self._idle else 0.1)
        return outcome

    def _send(self, client: _Client, request: bytes, scheduled: float) -> None:
        self._busy += 1
        client.scheduled = scheduled
        client.sent = time.perf_counter()
        try:
            if client.connection.send(request) < len(request):
                raise RuntimeError("the kernel's buffer is too small for the request")
        except ConnectionError:
            pass  # `_receive` handles a closed connection

    def _receive(self, outcome: Outcome, timeout: float) -> None:
        """Wait for responses, and read them. This function waits with `select`, because epoll rounds its timeout up to
        a millisecond.
        """
        select.select([self._poll], [], [], timeout)
        for number, _ in self._poll.poll(0):
            client = self._clients[number]
            try:
                data = client.connection.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            if data:
                self._read(outcome, client, client.received + data if client.received else data)
            else:
                self._lose(outcome, client, number)

    def _read(self, outcome: Outcome, client: _Client, data: bytes) -> None:
        start = data.find(b"content-length: ")
        end = data.find(b"\r\n\r\n", start)
        if start < 0 or end < 0 or len(data) < end + 4 + int(data[start + 16 : end].split(b"\r\n", 1)[0]):
            client.received = data
            return
        client.received = b""
        retry = data.find(b"retry-after: ", 0, end)
        seconds = int(data[retry + 13 : end].split(b"\r\n", 1)[0]) if retry >= 0 else 0
        self._record(outcome, client, int(data[9:12]), seconds)
        self._idle.append(client)

    def _lose(self, outcome: Outcome, client: _Client, number: int) -> None:
        self.broken += 1
        self._poll.unregister(number)
        del self._clients[number]
        client.connection.close()
        if client in self._idle:
            self._idle.remove(client)
        else:
            self._record(outcome, client, 0, 0)

    def _record(self, outcome: Outcome, client: _Client, status: int, retry_after: int) -> None:
        outcome.scheduled.append(client.scheduled)
        outcome.sent.append(client.sent)
        outcome.answered.append(time.perf_counter())
        outcome.status.append(status)
        outcome.retry_after.append(retry_after)
        self._busy -= 1
