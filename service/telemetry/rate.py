"""Limits the number of records per second, so that recording takes little time while the server is busy.

The algorithm is the generic cell rate algorithm of ITU-T I.371, annex A.
"""

from __future__ import annotations


class RateLimit:
    """Allows a burst of at most `burst` events. After a burst, allows `rate` events per second, evenly spread.

    next: the earliest time at which the next event may happen.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._tolerance = (burst - 1) * self._interval
        self.next = 0.0

    def take(self, now: float) -> bool:
        """Return whether an event may happen now, and count the event if it may.

        now: the time in seconds, which must not be less than in the previous call.
        """
        if now < self.next:
            return False
        self.next = max(self.next, now - self._tolerance) + self._interval
        return True

    def give_back(self, share: float) -> None:
        """Count the last event as only `1 - share` of an event, so that the next event may happen earlier."""
        self.next -= self._interval * share
