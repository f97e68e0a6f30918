"""Decides when the server begins a request. An overloaded process refuses some requests, and answers the others fast.

For small models, the event loop is the bottleneck: reading and writing requests takes longer than the runs of the
model. Without a limit, one turn of the event loop would work on thousands of requests, while other requests would wait
in the kernel's buffers, where the server can't see them. So that no request waits there for long, each turn of the
event loop begins requests only for a few milliseconds. All other requests wait in the queue of this module until a
later turn begins them. Between two turns that begin requests, the event loop reads and refuses requests, and answers
health checks.

A request is refused if its expected wait is too long. The expected wait is the size of the queue in bytes, multiplied
by the measured seconds per byte. The size of the queue is the sum of the sizes of all bodies, plus a fixed number of
bytes for each request. The measured seconds include all work of the event loop. This module does not depend on HTTP or
models. The batchers own the queues of rows, and this module owns the queue of requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

# The minimum and the maximum number of seconds for which one turn of the event loop begins requests. A turn lasts
# longer than the minimum only if refusing requests takes long: it then lasts _WORK_PER_REFUSALS times as long as the
# refusals took, so that the accepted requests get enough time too.
_TURN_SECONDS, _LONG_TURN_SECONDS = 0.005, 0.02
_WORK_PER_REFUSALS = 3
# Measurements show that a request without a body takes about as much time as `_REQUEST_BYTES` bytes of JSON.
_REQUEST_BYTES = 2048
# After each turn, the sums that measure the speed are multiplied by this weight, and the new measurement is added.
_OLD_WEIGHT = 0.9
# This share of the longest expected wait, and this share of each queue, is reserved for requests of high priority.
RESERVE = 0.1
# This number of requests may always wait until their deadlines. For example, a client may send one large request on
# each connection of its pool without overloading the server.
ALWAYS_WAITING = 32
# The largest value of Retry-After, in seconds.
_MAX_RETRY_AFTER = 60


class Waiting(Protocol):
    """A request in the queue of an `Admission`."""

    def begin(self) -> bool:
        """Begin the request, unless it is cancelled.

        Return whether more requests may begin in this turn of the event loop. Never raises.
        """


class Admission:
    """Queues the requests of one process until they may begin. Call all methods on the same event loop.

    max_wait: the largest expected wait in seconds. Requests of high priority may wait for `max_wait`; other requests
    may wait for 90% of `max_wait`. Requests of high priority begin first. clock: a monotonic clock, such as
    `time.monotonic`.
    """

    def __init__(self, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_wait = max_wait
        self._clock = clock
        self._turn_began: float | None = None
        self._high: deque[tuple[Waiting, int]] = deque()
        self._normal: deque[tuple[Waiting, int]] = deque()
        self._high_bytes = self._normal_bytes = 0
        # Weighted sums over the latest turns: the bytes of the requests (`_bytes`), the seconds spent in `begin`
        # (`_begin_seconds`), and all seconds of the event loop (`_all_seconds`). `_measured` is the time of the last
        # measurement, or None if no request is queued.
        self._bytes, self._begin_seconds, self._all_seconds = 0.0, 0.0, 0.0
        self._measured: float | None = None
        # The arrival times of the first and the last request since the last turn in which requests began.
        self._first_arrival: float | None = None
        self._last_arrival = 0.0
        self._refused_bytes = 0
        self._refused_since = -math.inf

    def begins_now(self, now: float) -> bool:
        """Return whether a new request may begin immediately. If the result is false, the caller must call `wait`."""
        if self._measured is not None:
            return False
        if self._turn_began is None:
            self._turn_began = now
            asyncio.get_running_loop().call_soon(self._end_turn)
            return True
        return now - self._turn_began < _TURN_SECONDS

    def wait(self, request: Waiting, size: int, now: float, *, patience: float, high: bool) -> int:
        """Queue a request with a body of `size` bytes and a deadline in `patience` seconds.

        Returns 0 if the request is queued. A request is refused if its expected wait is longer than `patience` or
        `max_wait`. If the request is refused, the method returns the number of seconds for the header Retry-After.
        `max_wait` does not apply to a request that can begin in the next turn: if such requests were refused, that turn
        might have no request to begin.
        """
        if self._first_arrival is None:
            self._first_arrival = now
        self._last_arrival = now
        size += _REQUEST_BYTES
        ahead = self._high_bytes if high else self._high_bytes + self._normal_bytes
        allowed = self._max_wait if high else self._max_wait * (1 - RESERVE)
        expected = ahead * self._all_seconds
        if expected > patience * self._bytes or (
            expected > allowed * self._bytes
            and len(self._high) + (0 if high else len(self._normal)) >= ALWAYS_WAITING
            and ahead * self._begin_seconds > self._turn_seconds() * self._bytes
        ):
            return self._retry_after(size, now)
        if high:
            self._high.append((request, size))
            self._high_bytes += size
        else:
            self._normal.append((request, size))
            self._normal_bytes += size
        return 0

    def _end_turn(self) -> None:
        """End a turn that began while no request was queued.

        The rows of the requests that began in this turn are run before any queued request begins.
        """
        self._turn_began = None
        if self._high or self._normal:
            self._measured = self._clock()
            asyncio.get_running_loop().call_soon(self._begin_some)

    def _begin_some(self) -> None:
        """Begin queued requests until the time of one turn is over."""
        began = now = self._clock()
        end = began + self._turn_seconds()
        self._first_arrival = None
        done = 0
        while now < end:
            if self._high:
                request, size = self._high.popleft()
                self._high_bytes -= size
            elif self._normal:
                request, size = self._normal.popleft()
                self._normal_bytes -= size
            else:
                break
            more = request.begin()
            done += size
            now = self._clock()
            if not more:
                break
        self._measure(done, now - began, now - (began if self._measured is None else self._measured))
        if self._high or self._normal:
            self._measured = now
            asyncio.get_running_loop().call_soon(self._begin_some)
        else:
            self._measured = None

    def _turn_seconds(self) -> float:
        """Return for how many seconds the next turn begins requests."""
        arrivals = 0.0 if self._first_arrival is None else self._last_arrival - self._first_arrival
        return min(max(_TURN_SECONDS, _WORK_PER_REFUSALS * arrivals), _LONG_TURN_SECONDS)

    def _measure(self, done: int, begin_seconds: float, all_seconds: float) -> None:
        self._bytes = self._bytes * _OLD_WEIGHT + done
        self._begin_seconds = self._begin_seconds * _OLD_WEIGHT + begin_seconds
        self._all_seconds = self._all_seconds * _OLD_WEIGHT + all_seconds

    def _retry_after(self, size: int, now: float) -> int:
        """Return how many seconds the server would need to handle all requests that it refused in the last second."""
        if now - self._refused_since > 1:
            self._refused_since, self._refused_bytes = now, 0
        self._refused_bytes += size
        seconds = self._refused_bytes * self._all_seconds / self._bytes
        return min(_MAX_RETRY_AFTER, 1 + int(seconds))
