"""Limits how often something is recorded, so that recording stays cheap while the server is busy.

The limiter is the generic cell rate algorithm: ITU-T I.371, annex A.
"""

from __future__ import annotations


class RateLimit:
    """Allows `rate` events a second, evenly spread, after a burst of at most `burst` events.

    next: the earliest time of the next event.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._tolerance = (burst - 1) * self._interval
        self.next = 0.0

    def take(self, now: float) -> bool:
        """Return whether an event may happen now. If it may, count the event.

        now: the time in seconds. It is never less than in the call before.
        """
        if now < self.next:
            return False
        self.next = max(self.next, now - self._tolerance) + self._interval
        return True

    def give_back(self, share: float) -> None:
        """Count the last event only as `1 - share` of an event."""
        self.next -= self._interval * share
