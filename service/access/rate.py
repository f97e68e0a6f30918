"""A token bucket that limits the rate of requests with one API key.

The state of the bucket is one number: the time at which the bucket is full again. The algorithm is the generic cell
rate algorithm of ITU-T I.371. All workers share one bucket for each key: they map a file that contains the state of the
bucket into memory. Because the workers use no lock, two workers may take the same token in the same microsecond.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_ROUNDING = 1e-6  # in seconds; a rounding error of up to this size does not make the bucket refuse a request


class Bucket:
    """Accepts at most `rate` requests per second. The requests of one second may all arrive at the same time.

    state: a sequence that contains only one number: the time in seconds at which the bucket is full again.
    """

    __slots__ = ("_interval", "_state", "_tolerance")

    def __init__(self, rate: float, state: list[float] | memoryview[float]) -> None:
        self._interval = 1 / rate
        self._tolerance = max(0.0, 1 - self._interval)
        self._state = state

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the number of seconds until a token is free.

        now: the time in seconds, from a monotonic clock.
        """
        full = max(now, self._state[0])
        wait = full - self._tolerance - now
        if wait > _ROUNDING:
            return wait
        self._state[0] = full + self._interval
        return 0.0


def bucket_state(file: Path | None) -> list[float] | memoryview[float]:
    """Create the state of a bucket.

    file: the processes share the state through this file; None if there is only one process.
    """
    if file is None:
        return [0.0]
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, 8)
        return memoryview(mmap.mmap(descriptor, 8)).cast("d")
    finally:
        os.close(descriptor)
