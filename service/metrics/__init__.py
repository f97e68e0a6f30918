"""Counts the work of the service. The service calls `interface.py`; `prometheus.py` has every metric."""

from foldserve.service.metrics.interface import (
    EXPLAIN,
    MAX_DEFERRED_VALUES,
    BatchObserver,
    Counts,
    FeedbackOutcome,
    Figure,
    Metrics,
    RequestMetrics,
    Totals,
    Unusual,
    ignore_batch,
)

__all__ = [
    "EXPLAIN",
    "MAX_DEFERRED_VALUES",
    "BatchObserver",
    "Counts",
    "FeedbackOutcome",
    "Figure",
    "Metrics",
    "RequestMetrics",
    "Totals",
    "Unusual",
    "ignore_batch",
]
