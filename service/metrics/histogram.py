"""A histogram that adds many observations in one call. It knows no metric."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import Histogram


class BulkHistogram(Histogram):
    """A Prometheus histogram that adds many observations at once."""

    def observe_many(self, amounts: Iterable[float]) -> None:
        """Add one observation for each amount."""
        total = 0.0
        counts: Tally[int] = Tally()
        for amount in amounts:
            total += amount
            counts[bisect_left(self._upper_bounds, amount)] += 1
        if counts:
            self._sum.inc(total)
            for bucket, count in counts.items():
                self._buckets[bucket].inc(count)
