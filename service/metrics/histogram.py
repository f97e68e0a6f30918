"""A histogram that adds many observations in one call. This module does not depend on any metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import Histogram


class BulkHistogram(Histogram):
    """A Prometheus histogram that adds many observations at once."""

    def observe_many(self, amounts: Sequence[float]) -> None:
        """Add an observation for each amount."""
        if not amounts:
            return
        values = np.array(amounts, np.float64)
        counts = np.bincount(np.searchsorted(self._upper_bounds, values))
        self._sum.inc(float(values.sum()))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
